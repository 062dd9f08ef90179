"""The long-run job: step sizes, chains of every length, pictures and diagnostics (section 4.2, Figures 7, 8 and 10)."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drl_dist.analysis.long_run_options import LongRunOptions
from drl_dist.analysis.long_run_output import LongRunOutput, table
from drl_dist.checkpoints.schedules import SCHEDULE_NAME, read_schedule, write_schedule
from drl_dist.config import EngineConfig
from drl_dist.data.filesystem import check_reachable
from drl_dist.diagnostics import Mixing, mixing
from drl_dist.errors import UserError
from drl_dist.evaluation.grids import to_uint8
from drl_dist.mcmc.adaptation import StepSizeSchedule, kernel_named
from drl_dist.mcmc.kernel import Info, Observer, State
from drl_dist.mcmc.record import ChainRecord, ChainSummary, summarise
from drl_dist.models import TrainedModel, averaged_network, load_model
from drl_dist.noise import PhiloxNoise
from drl_dist.progress import Advance, progress
from drl_dist.recipe import build_ladder, build_levels
from drl_dist.recovery import Levels
from drl_dist.sampling.long_run import LongRunSampler, Start, adapt_schedule, suitable_start
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
        options: checked; see `drl_dist.analysis.long_run_options.check_options`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    check_reachable(options.out)
    model = load_model(options.model, options.tracking_uri)
    ladder = build_ladder(model.experiment.diffusion)
    levels = build_levels(model.experiment, ladder)
    schedule = None
    if options.schedule is not None:
        schedule = read_schedule(options.schedule, model.ema_sha256, levels.num_levels)
        _check_leapfrogs(options, schedule)
    engine, device = _engine(model, options)
    start = suitable_start(ladder) if options.start == "auto" else options.start
    print(f"the chains of a level begin at {_START_TEXT[start]}", flush=True)
    setting = _Setting(options, levels, start, engine, device)
    if schedule is None:
        schedule = _adapt(setting, model.ema_sha256)
    output = LongRunOutput(options.out, model.experiment, _origin(setting, model, schedule))
    output.write_step_sizes(schedule, options.adapt)
    runs = [_run(setting, schedule, length, output) for length in options.chain_lengths]
    output.write_comparison()
    output.write_diagnostics(runs)
    print(f"images, pictures and diagnostics are below {options.out}", flush=True)
    return 0


def _check_leapfrogs(options: LongRunOptions, schedule: StepSizeSchedule) -> None:
    if options.kernel == "hmc" and schedule.num_leapfrog_steps != options.num_leapfrog_steps:
        raise UserError(
            f"step sizes below {options.schedule}",
            got=f"those of {schedule.num_leapfrog_steps} leapfrog steps",
            expected=f"those of {options.num_leapfrog_steps}",
            remedy=f"use --num-leapfrog-steps {schedule.num_leapfrog_steps}, or leave out --schedule",
        )


def _engine(model: TrainedModel, options: LongRunOptions) -> tuple[GradientEngine, torch.device]:
    device = torch.device("cuda" if options.use_gpu else "cpu")
    if options.use_gpu and not torch.cuda.is_available():
        raise UserError("option --use-gpu", got="no GPU", expected="a GPU", remedy="leave out the option")
    network = averaged_network(model.experiment, model.ema, device)
    network.to(dtype=_DTYPES[options.precision])
    # The captured graph holds images in float32.
    config = EngineConfig(cuda_graph=options.precision == "float32")
    return GradientEngine(network, config, is_frozen=True), device


def _adapt(setting: _Setting, ema_sha256: str) -> StepSizeSchedule:
    """The schedule, found and kept."""
    options, levels, config = setting.options, setting.levels, setting.options.adapt
    print(
        f"adapting the step sizes of {levels.num_levels} levels on {config.num_chains} chains x {config.num_steps} "
        f"steps to acceptance rates in [{config.lowest_rate:g}, {config.highest_rate:g}]",
        flush=True,
    )
    with progress("adapting", levels.num_levels, 0, "levels") as advance:
        schedule = adapt_schedule(
            levels,
            setting.engine.raw_at,
            setting.engine.network.image_shape,
            seed=options.seed,
            config=config,
            num_leapfrog_steps=options.num_leapfrog_steps,
            start=setting.start,
            batch_size=options.batch_size,
            device=setting.device,
            dtype=_DTYPES[options.precision],
            observe=lambda t, step_size, rate: advance(1, f"level {t}: step size {step_size:.3g}, rate {rate:.2f}"),
        )
    write_schedule(options.out, schedule, ema_sha256)
    print(f"wrote {options.out}/{SCHEDULE_NAME}; --schedule {options.out} uses these step sizes again", flush=True)
    return schedule


@dataclass
class _Watch:
    """Who is told of the steps of all levels: records for the diagnostics, and the progress."""

    traced: frozenset[int]
    advance: Advance
    records: dict[int, list[ChainRecord]] = field(default_factory=dict)
    steps_seen: int = 0
    """Of the batch at hand, at the level at hand."""

    def __call__(self, t: int, x_noisy: Tensor) -> Observer:
        """See `drl_dist.sampling.long_run.ObserveLevel`."""
        # One batch tells enough about mixing.
        record = ChainRecord(x_noisy, is_traced=t in self.traced and t not in self.records)
        self.records.setdefault(t, []).append(record)

        def observe(chain_step: int, state: State, info: Info | None) -> None:
            record(chain_step, state, info)
            self.steps_seen += 1
            self.advance(len(x_noisy))

        return observe

    def end_level(self, t: int, num_steps: int, num_images: int) -> None:
        """Count the steps that nobody was told of, and let go of the level's images."""
        self.advance((num_steps - self.steps_seen) * num_images)
        self.steps_seen = 0
        if t in self.records:
            self.records[t][-1].close()


def _run(setting: _Setting, schedule: StepSizeSchedule, length: int, output: LongRunOutput) -> dict[str, Any]:
    """All chains of one length; what they say about themselves."""
    options, levels, engine = setting.options, setting.levels, setting.engine
    began = time.monotonic()
    kernel_at = kernel_named(
        options.kernel, num_leapfrog_steps=options.num_leapfrog_steps, max_tree_depth=options.max_tree_depth
    )
    sampler = LongRunSampler(levels, schedule.step_size, kernel_at, length, setting.start, _DTYPES[options.precision])
    num_levels, noise = levels.num_levels, PhiloxNoise(options.seed)
    shown = frozenset(np.linspace(0, num_levels - 1, min(num_levels, SHOWN_LEVELS)).round().astype(int).tolist())
    images: list[Tensor] = []
    stages: list[Tensor] = []
    what = f"{length} steps per level"
    with progress(what, length * num_levels * options.num_images, 0, "image steps") as advance:
        watch = _Watch(shown, advance)
        for ids in torch.arange(options.num_images, device=setting.device).split(options.batch_size):
            x = None
            for t, x_t in sampler.descend(engine.raw_at, noise, ids, engine.network.image_shape, observe=watch):
                watch.end_level(t, length, len(ids))
                x = x_t
                if t in shown and not images:
                    stages.append(to_uint8(x_t).cpu())
            assert x is not None
            if not bool(x.isfinite().all()):
                raise UserError(
                    f"images {int(ids[0])} to {int(ids[-1])} at {what}",
                    got="values that are not finite",
                    expected="finite pixels",
                    remedy="use --start x_noisy, or an earlier checkpoint",
                )
            images.append(to_uint8(x).cpu())
    output.write_run(length, torch.cat(images), torch.stack(stages))
    rows = _rows(levels, watch.records, shown)
    seconds = time.monotonic() - began
    print(f"{what}, {length * num_levels} in all: {options.num_images} images in {seconds:.0f} s", flush=True)
    print(table(rows), flush=True)
    return {"steps_per_level": length, "steps": length * num_levels, "levels": rows}


def _rows(levels: Levels, records: dict[int, list[ChainRecord]], shown: frozenset[int]) -> list[dict[str, Any]]:
    """Per level that made steps of the kernel: what is known of them, from level 0 on."""
    rows: list[dict[str, Any]] = []
    for t in sorted(records):
        summary: ChainSummary = summarise(records[t])
        is_marginal = float(levels.recovery_precision[t]) == 0
        trace, found = records[t][0].trace, None
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


def _origin(setting: _Setting, model: TrainedModel, schedule: StepSizeSchedule) -> dict[str, Any]:
    options = setting.options
    return {
        "model": options.model,
        "step": model.step,
        "ema_sha256": model.ema_sha256,
        "kernel": options.kernel,
        "start": setting.start,
        "precision": options.precision,
        "num_leapfrog_steps": options.num_leapfrog_steps if options.kernel == "hmc" else None,
        "max_tree_depth": options.max_tree_depth if options.kernel == "nuts" else None,
        "num_images": options.num_images,
        "seed": options.seed,
        "schedule": dataclasses.asdict(schedule),
    }
