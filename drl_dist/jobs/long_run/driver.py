"""The long-run job: step sizes, chains of every length, pictures and diagnostics (section 4.2, Figures 7, 8 and 10)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.amounts import counted, evenly_spread
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_uint8
from drl_dist.common.progress import progress
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import Levels
from drl_dist.jobs.common.device import device_name, prepare_device
from drl_dist.jobs.common.output.job_folder import JobFolder
from drl_dist.jobs.common.output.job_records import digest_of
from drl_dist.jobs.common.step_sizes import STEP_SIZES_NAME, check_leapfrogs, read_step_sizes, write_step_sizes
from drl_dist.jobs.long_run.diagnostics import Mixing, mixing
from drl_dist.jobs.long_run.options import LongRunOptions
from drl_dist.jobs.long_run.output import DIAGNOSTICS_NAME, LongRunOutput, level_table
from drl_dist.jobs.long_run.progress import Batch, LongRunProgress, Watch
from drl_dist.jobs.long_run.request import clean_up, known_request, open_folder, whole_request
from drl_dist.library.engine import check_finite, frozen_engine
from drl_dist.library.stored import TrainedModel, load_model
from drl_dist.mcmc.adaptation import StepSizes
from drl_dist.mcmc.kernels import KERNELS, adapted_with, kernel_named
from drl_dist.mcmc.record import ChainSummary, summarise
from drl_dist.mcmc.settings import KernelName, Start
from drl_dist.sampling.long_run import LongRunSampler, adapt_step_sizes, suitable_start

if TYPE_CHECKING:
    from drl_dist.training.chain import GradientEngine

SHOWN_LEVELS = 12
"""Levels whose chains are traced for ESS and R-hat, and whose images are shown; evenly spaced."""
_DTYPES = {"float64": torch.float64, "float32": torch.float32}
_START_TEXT: dict[Start, str] = {
    "normal_approximation": "a draw from the normal approximation",
    "x_noisy": "x_noisy, as in training",
}


@dataclass(frozen=True)
class _Setting:
    """A model ready to run, and how."""

    options: LongRunOptions
    levels: Levels
    start: Start
    engine: GradientEngine
    device: torch.device


def long_run(options: LongRunOptions) -> int:
    """Adapt step sizes or read them, run chains of every length, write what they made; the exit status.

    Args:
        options: checked; see `drl_dist.jobs.long_run.options.check_options`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    folder = open_folder(options)
    folder.check(known_request(options))
    model = load_model(options.model, options.tracking_uri, options.allow_code)
    ladder = build_ladder(model.experiment.diffusion)
    levels = build_levels(model.experiment, ladder)
    schedule = None
    if options.schedule is not None:
        schedule = read_step_sizes(options.schedule, model.ema_sha256, levels.num_levels)
        _check_kernel(options, schedule)
    start = suitable_start(ladder) if options.start == "auto" else options.start
    request = whole_request(options, model, start, schedule)
    device = torch.device(device_name(options.use_gpu))
    kept = LongRunProgress(folder.records, digest_of(request), device)
    if folder.is_complete(request):
        clean_up(folder, request, options)
        print(f"{options.out} already holds these chains, in {DIAGNOSTICS_NAME}; nothing to do", flush=True)
        return 0
    engine = _engine(model, options, device)
    print(f"the chains of a level begin at {_START_TEXT[start]}", flush=True)
    setting = _Setting(options, levels, start, engine, device)
    folder.begin(request)
    if schedule is None:
        schedule = _kept_step_sizes(folder, model, levels) or _adapt(setting, model.ema_sha256, kept)
    output = LongRunOutput(folder, model.experiment, _origin(setting, model, schedule))
    output.write_step_sizes(schedule, options.adapt)
    runs = [_run(setting, schedule, length, output, kept) for length in options.chain_lengths]
    output.write_comparison()
    output.write_diagnostics(runs)
    clean_up(folder, request, options)
    print(f"images, pictures and diagnostics are below {options.out}", flush=True)
    return 0


def _kept_step_sizes(folder: JobFolder, model: TrainedModel, levels: Levels) -> StepSizes | None:
    """The step sizes that an earlier start of this request left, None if it left none."""
    if STEP_SIZES_NAME not in folder.files.sizes():
        return None
    print(f"step sizes are those that an earlier start left in {folder.url}/{STEP_SIZES_NAME}", flush=True)
    return read_step_sizes(folder.url, model.ema_sha256, levels.num_levels)


def _check_kernel(options: LongRunOptions, schedule: StepSizes) -> None:
    wanted = adapted_with(options.kernel).name
    if schedule.kernel != wanted:
        raise UserError(
            f"step sizes below {options.schedule}",
            got=f"those of {schedule.kernel}",
            expected=f"those of {wanted}, which {options.kernel} takes",
            remedy="choose another --kernel, or leave out --schedule",
        )
    if "num_leapfrog_steps" in KERNELS[options.kernel].options:
        check_leapfrogs(schedule, options.num_leapfrog_steps, options.schedule)


def _engine(model: TrainedModel, options: LongRunOptions, device: torch.device) -> GradientEngine:
    prepare_device(device, threads=options.threads)
    # The captured graph holds images in float32.
    is_single = options.precision == "float32"
    return frozen_engine(model.experiment, model.ema, device, dtype=_DTYPES[options.precision], cuda_graph=is_single)


def _adapt(setting: _Setting, ema_sha256: str, kept: LongRunProgress) -> StepSizes:
    """The schedule, found, or found to its end, and kept."""
    options, levels, config = setting.options, setting.levels, setting.options.adapt
    print(
        f"adapting the step sizes of {counted(levels.num_levels, 'level')} on {counted(config.num_chains, 'chain')} x "
        f"{counted(config.num_steps, 'step')} to acceptance rates in [{config.lowest_rate:g}, {config.highest_rate:g}]",
        flush=True,
    )
    adapted = kept.adapted()
    done = 0 if adapted is None else len(adapted.found)
    if done:
        print(f"resumes at the step size of level {levels.num_levels - done - 1}", flush=True)
    with progress("adapting", levels.num_levels, done, "levels") as advance:
        schedule = adapt_step_sizes(
            levels,
            setting.engine.raw_at,
            setting.engine.network.image_shape,
            seed=options.seed,
            config=config,
            kernel=cast(KernelName, adapted_with(options.kernel).name),
            num_leapfrog_steps=options.num_leapfrog_steps,
            start=setting.start,
            batch_size=options.batch_size,
            device=setting.device,
            dtype=_DTYPES[options.precision],
            observe=lambda t, step_size, rate: advance(1, f"level {t}: step size {step_size:.3g}, rate {rate:.2f}"),
            keep=kept.keep_adapted,
            adapted=adapted,
        )
    write_step_sizes(options.out, schedule, ema_sha256)
    print(f"wrote {options.out}/{STEP_SIZES_NAME}; --schedule {options.out} uses these step sizes again", flush=True)
    return schedule


def _run(
    setting: _Setting, schedule: StepSizes, length: int, output: LongRunOutput, kept: LongRunProgress
) -> dict[str, Any]:
    """All chains of one length, or those that earlier starts have left to do; what they say about themselves."""
    options, levels, engine = setting.options, setting.levels, setting.engine
    began = time.monotonic()
    kernel_at = kernel_named(
        options.kernel, num_leapfrog_steps=options.num_leapfrog_steps, max_tree_depth=options.max_tree_depth
    )
    sampler = LongRunSampler(levels, schedule.step_size, kernel_at, length, setting.start, _DTYPES[options.precision])
    num_levels, noise = levels.num_levels, PhiloxNoise(options.seed)
    shown = frozenset(evenly_spread(num_levels, SHOWN_LEVELS))
    parts = torch.arange(options.num_images, device=setting.device).split(options.batch_size)
    batches = [kept.finished(length, number) for number in range(len(parts))]
    missing = [number for number, batch in enumerate(batches) if batch is None]
    middle = kept.interrupted()
    if middle is not None and (middle.length != length or middle.number not in missing):
        middle = None
    what = f"{counted(length, 'step')} per level"
    done = sum(len(parts[number]) for number in range(len(parts)) if number not in missing) * length * num_levels
    if middle is not None:
        t, next_step = middle.position.t, middle.position.next_step
        done += len(parts[middle.number]) * ((num_levels - 1 - t) * length + next_step)
        first = int(parts[middle.number][0])
        print(f"resumes at {what}, images from {first} on, level {t}, step {next_step}", flush=True)
    elif done:
        print(
            f"resumes at {what}, with {len(parts) - len(missing)} of {counted(len(parts), 'batch', 'batches')} done",
            flush=True,
        )
    with progress(what, length * num_levels * options.num_images, done, "image steps") as advance:
        for number in missing:
            ids = parts[number]
            left = middle if middle is not None and middle.number == number else None
            # One batch says enough about mixing.
            watch = Watch(kept, length, number, shown if number == 0 else frozenset(), advance, left)
            batch, x = watch.batch, None
            for t, x_t in sampler.descend(
                engine.raw_at,
                noise,
                ids,
                engine.network.image_shape,
                observe=watch,
                position=None if left is None else left.position,
            ):
                if t in shown and number == 0:
                    batch.stages.append(to_uint8(x_t).cpu())
                watch.end_level(t, x_t)
                x = x_t
            assert x is not None
            check_finite(
                x,
                f"images {int(ids[0])} to {int(ids[-1])} at {what}",
                remedy="use --start x_noisy, or an earlier checkpoint",
            )
            batch.images = to_uint8(x).cpu()
            kept.finish(length, number, batch)
            batches[number] = batch
    whole = [batch for batch in batches if batch is not None]
    images = torch.cat([batch.images for batch in whole if batch.images is not None])
    output.write_run(length, images, torch.stack(whole[0].stages))
    rows = _rows(levels, whole, shown)
    seconds = time.monotonic() - began
    print(
        f"{what}, {length * num_levels} in all: {counted(options.num_images, 'image')} in {seconds:.0f} s", flush=True
    )
    print(level_table(rows), flush=True)
    return {"steps_per_level": length, "steps": length * num_levels, "levels": rows}


def _rows(levels: Levels, batches: Sequence[Batch], shown: frozenset[int]) -> list[dict[str, Any]]:
    """Per level that made steps of the kernel: what is known of them, from level 0 on."""
    rows: list[dict[str, Any]] = []
    for t in sorted(batches[0].sums):
        # Where batches come from does not matter: records of earlier starts are on the CPU.
        summary: ChainSummary = summarise([batch.sums[t].cpu() for batch in batches])
        is_marginal = float(levels.recovery_precision[t]) == 0
        trace, found = batches[0].traces.get(t), None
        if trace is not None:
            found: Mixing | None = mixing(trace.cpu().numpy(), is_one_law=is_marginal)
        rows.append(
            {
                "level": t,
                "is_shown": t in shown,
                "is_marginal": is_marginal,
                **dataclasses.asdict(summary),
                "mixing": None if found is None else dataclasses.asdict(found),
            }
        )
    return rows


def _origin(setting: _Setting, model: TrainedModel, schedule: StepSizes) -> dict[str, Any]:
    options, used = setting.options, KERNELS[setting.options.kernel].options
    return {
        "model": options.model,
        "step": model.step,
        "ema_sha256": model.ema_sha256,
        "kernel": options.kernel,
        "start": setting.start,
        "precision": options.precision,
        "num_leapfrog_steps": options.num_leapfrog_steps if "num_leapfrog_steps" in used else None,
        "max_tree_depth": options.max_tree_depth if "max_tree_depth" in used else None,
        "num_images": options.num_images,
        "seed": options.seed,
        "schedule": dataclasses.asdict(schedule),
    }
