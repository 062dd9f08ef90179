"""The editing jobs: check everything, draw the images in this process, write them and a sheet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from drl_dist.build import build_posterior_sampler, build_sampler
from drl_dist.common.amounts import counted
from drl_dist.common.images import to_uint8
from drl_dist.common.progress import Advance, progress
from drl_dist.data.index import open_index
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.common.chains import CHAIN_FIELDS, with_chains
from drl_dist.jobs.common.device import device_name, prepare_device
from drl_dist.jobs.common.labels import LabelData, given_labels, read_label_data, wanted_of
from drl_dist.jobs.edit.options import EditOptions, InpaintOptions, InterpolateOptions
from drl_dist.jobs.edit.output import IMAGES_FOLDER, EditOutput, begun
from drl_dist.jobs.edit.tasks import open_task
from drl_dist.library.engine import check_finite, frozen_engine, with_progress
from drl_dist.library.stored import TrainedModel, load_model
from drl_dist.sampling.interpolation import InterpolatedNoise

if TYPE_CHECKING:
    from drl_dist.config.tree import Experiment

INTERPOLATION_SHEET, INPAINTING_SHEET = "interpolation.png", "inpainting.png"
SHEET_ROWS, SHEET_COLUMNS = 16, 16
"""Pairs, and images, that are shown on a sheet."""
_CHOICE = "images"
"""Which ones are taken, in a request."""
_COMPLETION = 32
"""Completion c of image i is sample (c << 32) + i: it does not depend on how many there are of either."""


def interpolate_run(options: InterpolateOptions) -> int:
    """Draw rows of images between pairs of samples; the exit status.

    Args:
        options: checked; see `drl_dist.jobs.edit.options.check_interpolate`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    device = prepare_device(device_name(options.use_gpu))
    model = load_model(options.model, options.tracking_uri, options.allow_code)
    experiment = with_chains(model.experiment, options)
    label_data = _label_data(options, experiment)
    labels = wanted_of(
        options, experiment.condition, num_images=options.pairs, number_option="--pairs", label_data=label_data
    )
    request = _request(options, model, experiment, label_data) | {"pairs": options.pairs, "columns": options.columns}
    pairs = torch.arange(options.pairs, device=device)
    weights = torch.linspace(0, 1, options.columns, dtype=torch.float64, device=device)
    noise = InterpolatedNoise(PhiloxNoise(options.seed), 2 * pairs, 2 * pairs + 1, weights)
    batches = noise.sample_ids.split(options.batch_size)
    names = [f"{pair:05d}-{column:03d}.png" for pair in range(options.pairs) for column in range(options.columns)]
    output = EditOutput(options.out, INTERPOLATION_SHEET, request, len(batches))
    if output.is_complete():
        return _nothing_to_do(options, output, names)
    output.begin()
    engine = frozen_engine(experiment, model.ema, device)
    sampler = build_sampler(experiment, model.curvature)

    def draw(ids: Tensor, advance: Advance) -> Tensor:
        # Both ends of a row have its label.
        raw_at = labels.raw_at(engine.raw_at, ids // options.columns, PhiloxNoise(options.seed))
        return to_uint8(_finite(sampler.sample(with_progress(raw_at, advance), noise, ids, engine.network.image_shape)))

    images = _draw_all(output, batches, draw, "interpolating", sampler.num_gradients)
    output.write_images(dict(zip(names, images, strict=True)))
    shown = images[: SHEET_ROWS * options.columns]
    title = "each row leads from one generated image to another"
    sheet = output.finish(shown, options.columns, names, _caption(options, model), title)
    print(f"{counted(len(images), 'image')} in {options.out}/{IMAGES_FOLDER}, shown in {sheet}", flush=True)
    return 0


def inpaint_run(options: InpaintOptions) -> int:
    """Draw images given what is observed of them; the exit status.

    Args:
        options: checked; see `drl_dist.jobs.edit.options.check_inpaint`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    device = prepare_device(device_name(options.use_gpu))
    model = load_model(options.model, options.tracking_uri, options.allow_code)
    experiment = with_chains(model.experiment, options)
    sampler = build_posterior_sampler(experiment, options.num_rounds, model.curvature)
    label_data, noise = _label_data(options, experiment), PhiloxNoise(options.seed)
    labels = wanted_of(options, experiment.condition, num_images=options.num_images, label_data=label_data)
    size = experiment.model.resolution
    earlier = begun(options.out, INPAINTING_SHEET)
    # Earlier versions took the first images, which may be of one class; folders that they began stay as they are.
    is_first = earlier is not None and _CHOICE not in earlier
    task = open_task(options, sampler, (experiment.model.channels, size, size), device, is_first=is_first)
    fields = ("task", "data", "mask", "noise_std", "factor", "degraded", "num_images", "num_completions", "num_rounds")
    request = _request(options, model, experiment, label_data) | {name: getattr(options, name) for name in fields}
    request |= {} if is_first else {_CHOICE: "from all over the data"}
    count, completions = len(task.given), options.num_completions
    batches = torch.arange(count * completions, device=device).split(options.batch_size)
    kinds = ["given", *(f"result-{number:03d}" for number in range(completions))]
    kinds += [] if task.original is None else ["original"]
    names = [f"{number:05d}-{kind}.png" for number in range(count) for kind in kinds]
    output = EditOutput(options.out, INPAINTING_SHEET, request, len(batches))
    if output.is_complete():
        return _nothing_to_do(options, output, names)
    output.begin()
    engine = frozen_engine(experiment, model.ema, device)

    def draw(numbers: Tensor, advance: Advance) -> Tensor:
        chosen, completion = numbers // completions, numbers % completions
        raw_at = with_progress(labels.raw_at(engine.raw_at, chosen, noise), advance)
        results = task.draw(raw_at, chosen, (completion << _COMPLETION) + chosen)
        return task.finish(_finite(results), chosen)

    shown_as = [tensor.cpu().numpy() for tensor in (task.given, task.original) if tensor is not None]
    given = hashlib.sha256(b"".join(pixels.tobytes() for pixels in shown_as)).hexdigest()
    made = _draw_all(output, batches, draw, options.task, task.num_gradients, given)
    # One column for each image: what is observed, its results, the original.
    rows = [task.given.cpu()[:, None], made.unflatten(0, (count, completions))]
    if task.original is not None:
        rows.append(task.original.cpu()[:, None])
    table = torch.cat(rows, dim=1)
    output.write_images(dict(zip(names, table.flatten(0, 1), strict=True)))
    shown = table[:SHEET_COLUMNS]
    title = f"{options.task}, rows: given, {counted(completions, 'result')}"
    title += "" if task.original is None else ", original"
    sheet = output.finish(shown.transpose(0, 1).flatten(0, 1), len(shown), names, _caption(options, model), title)
    print(f"{counted(count * completions, 'image')} in {options.out}/{IMAGES_FOLDER}, shown in {sheet}", flush=True)
    return 0


def _draw_all(
    output: EditOutput,
    batches: Sequence[Tensor],
    draw: Callable[[Tensor, Advance], Tensor],
    what: str,
    steps_per_image: int,
    given: str = "",
) -> Tensor:
    """The images of all batches, those that earlier starts finished as they left them; uint8 (N, C, H, W).

    Args:
        output: keeps each batch when it is finished.
        batches: numbers of images.
        draw: the images (B, C, H, W) uint8 of these numbers.
        what: is being done, for people.
        steps_per_image: chain steps.
        given: checksum of what is observed of the images.
    """
    made = output.finished(given)
    total, done = sum(map(len, batches)), sum(map(len, made.values()))
    if done:
        print(f"resumes with {done} of {counted(total, 'image')}", flush=True)
    with progress(what, total * steps_per_image, done * steps_per_image, "chain steps") as advance:
        for number in range(len(batches)):
            if number not in made:
                made[number] = draw(batches[number], advance).cpu()
                output.keep(number, made[number], given)
    return torch.cat([made[number] for number in range(len(batches))])


def _label_data(options: EditOptions, experiment: Experiment) -> LabelData | None:
    real = open_index(options.real) if options.real else None
    return read_label_data(options, experiment.condition, real)


def _request(
    options: EditOptions, model: TrainedModel, experiment: Experiment, label_data: LabelData | None
) -> dict[str, Any]:
    return {
        "preset": experiment.preset,
        "step": model.step,
        "ema_sha256": model.ema_sha256,
        "config_sha256": model.config_sha256,
        "seed": options.seed,
        "noise_scale": experiment.mcmc.sampling_noise_scale,
        "batch_size": options.batch_size,
        "device": device_name(options.use_gpu),
        # The model's own are part of its config, and folders begun without these options have none of them.
        **{name: getattr(options, name) for name in CHAIN_FIELDS if getattr(options, name) is not None},
        **given_labels(options, label_data),
    }


def _caption(options: InterpolateOptions | InpaintOptions, model: TrainedModel) -> str:
    return f"{options.model}, step {model.step}, seed {options.seed}"


def _nothing_to_do(options: EditOptions, output: EditOutput, names: Collection[str]) -> int:
    output.clean_up(names)
    print(f"{options.out} already holds these images; nothing to do", flush=True)
    return 0


def _finite(images: Tensor) -> Tensor:
    check_finite(
        images,
        "drawn images",
        remedy="use an earlier checkpoint, or one that was trained at a lower learning rate",
    )
    return images
