"""The editing jobs: check everything, draw the images in this process, write them and a sheet."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from drl_dist.build import build_posterior_sampler, build_sampler
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_uint8
from drl_dist.common.progress import Advance, progress
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.jobs.common.device import device_name, prepare_device
from drl_dist.jobs.common.model import TrainedModel, averaged_network, load_model
from drl_dist.jobs.edit.options import EditOptions, InpaintOptions, InterpolateOptions
from drl_dist.jobs.edit.output import IMAGES_FOLDER, EditOutput
from drl_dist.jobs.edit.tasks import open_task
from drl_dist.sampling.interpolation import InterpolatedNoise
from drl_dist.sampling.progressive import RawAtLevel
from drl_dist.training.chain import GradientEngine

INTERPOLATION_SHEET, INPAINTING_SHEET = "interpolation.png", "inpainting.png"
SHEET_ROWS, SHEET_COLUMNS = 16, 16
"""Pairs, and images, that are shown on a sheet."""
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
    model = load_model(options.model, options.tracking_uri)
    experiment = _experiment(options, model)
    request = _request(options, model, experiment) | {"pairs": options.pairs, "columns": options.columns}
    output = EditOutput(options.out, INTERPOLATION_SHEET, request)
    if output.is_complete():
        return _nothing_to_do(options)
    output.begin()
    engine = GradientEngine(averaged_network(experiment, model.ema, device), EngineConfig(), is_frozen=True)
    pairs = torch.arange(options.pairs, device=device)
    weights = torch.linspace(0, 1, options.columns, dtype=torch.float64, device=device)
    noise = InterpolatedNoise(PhiloxNoise(options.seed), 2 * pairs, 2 * pairs + 1, weights)
    sampler = build_sampler(experiment)
    per_image = max(1, sampler.num_chain_steps) * sampler.levels.num_levels
    made: list[Tensor] = []
    with progress("interpolating", len(noise.sample_ids) * per_image, 0, "chain steps") as advance:
        for ids in noise.sample_ids.split(options.batch_size):
            images = sampler.sample(_counted(engine, advance), noise, ids, engine.network.image_shape)
            made.append(to_uint8(_finite(images)).cpu())
    images = torch.cat(made)
    for number, pixels in enumerate(images):
        pair, column = divmod(number, options.columns)
        output.write_image(f"{pair:05d}-{column:03d}.png", pixels)
    shown = images[: SHEET_ROWS * options.columns]
    print(
        f"{len(images)} images in {options.out}/{IMAGES_FOLDER}, shown in {output.finish(shown, options.columns)}",
        flush=True,
    )
    return 0


def inpaint_run(options: InpaintOptions) -> int:
    """Draw images given what is observed of them; the exit status.

    Args:
        options: checked; see `drl_dist.jobs.edit.options.check_inpaint`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    device = prepare_device(device_name(options.use_gpu))
    model = load_model(options.model, options.tracking_uri)
    experiment = _experiment(options, model)
    sampler = build_posterior_sampler(experiment, options.num_rounds)
    size = experiment.model.resolution
    task = open_task(options, sampler, (experiment.model.channels, size, size), device)
    names = ("task", "data", "mask", "noise_std", "factor", "degraded", "num_images", "num_completions", "num_rounds")
    request = _request(options, model, experiment) | {name: getattr(options, name) for name in names}
    output = EditOutput(options.out, INPAINTING_SHEET, request)
    if output.is_complete():
        return _nothing_to_do(options)
    output.begin()
    engine = GradientEngine(averaged_network(experiment, model.ema, device), EngineConfig(), is_frozen=True)
    count, completions = len(task.given), options.num_completions
    made: list[Tensor] = []
    with progress(options.task, count * completions * task.num_gradients, 0, "chain steps") as advance:
        for numbers in torch.arange(count * completions, device=device).split(options.batch_size):
            chosen, completion = numbers // completions, numbers % completions
            results = task.draw(_counted(engine, advance), chosen, (completion << _COMPLETION) + chosen)
            made.append(task.finish(_finite(results), chosen).cpu())
    # One column for each image: what is observed, its results, the original.
    rows = [task.given.cpu()[:, None], torch.cat(made).unflatten(0, (count, completions))]
    names = ["given", *(f"result-{number:03d}" for number in range(completions))]
    if task.original is not None:
        rows.append(task.original.cpu()[:, None])
        names.append("original")
    table = torch.cat(rows, dim=1)
    for number, column in enumerate(table):
        for name, pixels in zip(names, column, strict=True):
            output.write_image(f"{number:05d}-{name}.png", pixels)
    shown = table[:SHEET_COLUMNS]
    sheet = output.finish(shown.transpose(0, 1).flatten(0, 1), len(shown))
    print(f"{count * completions} images in {options.out}/{IMAGES_FOLDER}, shown in {sheet}", flush=True)
    return 0


def _experiment(options: EditOptions, model: TrainedModel) -> Experiment:
    """The model's, with the noise scale that was asked for."""
    if options.noise_scale is None:
        return model.experiment
    mcmc = dataclasses.replace(model.experiment.mcmc, sampling_noise_scale=options.noise_scale)
    return dataclasses.replace(model.experiment, mcmc=mcmc)


def _request(options: EditOptions, model: TrainedModel, experiment: Experiment) -> dict[str, Any]:
    return {
        "preset": experiment.preset,
        "step": model.step,
        "ema_sha256": model.ema_sha256,
        "config_sha256": model.config_sha256,
        "seed": options.seed,
        "noise_scale": experiment.mcmc.sampling_noise_scale,
        "batch_size": options.batch_size,
        "device": device_name(options.use_gpu),
    }


def _nothing_to_do(options: EditOptions) -> int:
    print(f"{options.out} already holds these images; nothing to do", flush=True)
    return 0


def _counted(engine: GradientEngine, advance: Advance) -> RawAtLevel:
    """The network, telling after each chain step how many images made it."""

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        raw = engine.raw_at(level)

        def density(y: Tensor) -> tuple[Tensor, Tensor]:
            result = raw(y)
            advance(len(y))
            return result

        return density

    return raw_at


def _finite(images: Tensor) -> Tensor:
    if not bool(images.isfinite().all()):
        raise UserError(
            "drawn images",
            got="values that are not finite",
            expected="finite pixels",
            remedy="use an earlier checkpoint, or one that was trained at a lower learning rate",
        )
    return images
