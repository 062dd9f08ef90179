"""Options of ``jobs/inpaint.py`` and ``jobs/interpolate.py``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from drl_dist.common.errors import UserError
from drl_dist.common.validation import Rule, file_rule, model_rule, place_rule, refuse_broken, refuse_missing
from drl_dist.jobs.common.chains import ChainKernelName, chain_rules
from drl_dist.jobs.common.labels import LabelOptions

SHAPES = ("left-half", "right-half", "top-half", "bottom-half", "centre")
"""Regions that a mask can hide by name; random-NN% hides so many of the pixels."""
MAX_IMAGES = 10_000
MAX_COLUMNS = 1000
MAX_COMPLETIONS = 1 << 15
MAX_ROUNDS = 1000
_RANDOM = re.compile(r"random-(\d{1,3})%")


@dataclass(frozen=True, kw_only=True)
class EditOptions(LabelOptions):
    """What both jobs need."""

    model: str = ""
    """models:/NAME@latest, models:/NAME/VERSION, or the URL of a checkpoint, of a run folder or of a saved
    model."""
    out: str = ""
    """URL of the folder for the pictures; the same command resumes there."""
    seed: int = 0
    """Keys all noise."""
    noise_scale: float | None = None
    """Factor on the Langevin noise; by default the model's mcmc.sampling_noise_scale."""
    num_chain_steps: int | None = None
    """K, chain steps of every level; by default the model's mcmc.sampling_chain_steps, or those of its training."""
    bound_fraction: float | None = None
    """c of steps by mcmc.step_rule bound; by default the model's mcmc.sampling_bound_fraction, or that of its
    training."""
    chain_kernel: ChainKernelName | None = None
    """Kernel of the chains; by default the model's mcmc.sampling_kernel, or that of its training."""
    real: str | None = None
    """URL of image shards of whose labels --labels data takes random ones."""
    batch_size: int = 64
    """Images that are computed together."""
    use_gpu: bool = False
    """Compute on a GPU."""
    tracking_uri: str | None = None
    """MLflow server; by default the environment's MLFLOW_TRACKING_URI. Only models:/ addresses need it."""
    allow_code: tuple[str, ...] = ()
    """Import paths, MODULE:NAME, of a network, kernel or objective that is not part of drl_dist, which the model may
    import (docs/own_parts.md)."""


@dataclass(frozen=True, kw_only=True)
class InterpolateOptions(EditOptions):
    """Options of ``jobs/interpolate.py``."""

    pairs: int = 4
    """Rows of the picture: row p is between the images 2p and 2p + 1 that the sampling job makes from this seed."""
    columns: int = 9
    """Images of a row, both ends included."""


@dataclass(frozen=True, kw_only=True)
class InpaintOptions(EditOptions):
    """Options of ``jobs/inpaint.py``."""

    data: str = ""
    """URL of image shards; images from all over them are taken, always the same."""
    task: Literal["inpaint", "denoise", "super-resolve"] = "inpaint"
    """inpaint fills in what a mask hides, denoise takes white noise away, super-resolve makes images larger."""
    mask: str | None = None
    """inpaint: left-half, right-half, top-half, bottom-half, centre, random-NN%, or a PNG file whose white pixels are
    the ones to fill in."""
    noise_std: float | None = None
    """denoise: standard deviation of the noise, in grey levels of 255."""
    factor: int | None = None
    """super-resolve: how many times larger the images become."""
    degraded: bool = False
    """The data are noisy or small images, and not originals that the job spoils first."""
    num_images: int = 8
    """Images of the data to take."""
    num_completions: int = 4
    """Results for each image, which differ by chance."""
    num_rounds: int = 4
    """inpaint, super-resolve: runs of each level's chain; 1 is the paper's procedure, more are nearer to the law."""


def check_interpolate(options: InterpolateOptions) -> None:
    """Raise `UserError` for options that no job can have."""
    _check(
        options,
        ["model", "out"],
        [
            ("pairs", options.pairs, f"1 to {MAX_IMAGES}", 1 <= options.pairs <= MAX_IMAGES),
            ("columns", options.columns, f"2 to {MAX_COLUMNS}", 2 <= options.columns <= MAX_COLUMNS),
        ],
    )


def check_inpaint(options: InpaintOptions) -> None:
    """Raise `UserError` for options that no job can have."""
    needed = {"inpaint": "mask", "denoise": "noise_std", "super-resolve": "factor"}
    given = [name for name in needed.values() if getattr(options, name) is not None]
    if superfluous := [name for name in given if name != needed[options.task]]:
        flag = _flag(superfluous[0])
        raise UserError(
            f"option {flag}",
            got=f"it with --task {options.task}",
            expected=f"{_flag(needed[options.task])} alone",
            remedy=f"leave {flag} out, or choose the task that it belongs to",
        )
    _check(
        options,
        ["model", "data", "out", needed[options.task]],
        [
            ("num_images", options.num_images, f"1 to {MAX_IMAGES}", 1 <= options.num_images <= MAX_IMAGES),
            (
                "num_completions",
                options.num_completions,
                f"1 to {MAX_COMPLETIONS}",
                1 <= options.num_completions <= MAX_COMPLETIONS,
            ),
            ("num_rounds", options.num_rounds, f"1 to {MAX_ROUNDS}", 1 <= options.num_rounds <= MAX_ROUNDS),
            (
                "noise_std",
                options.noise_std,
                "a positive number",
                options.noise_std is None or (options.noise_std > 0 and math.isfinite(options.noise_std)),
            ),
            ("factor", options.factor, "at least 2", options.factor is None or options.factor >= 2),
            (
                "mask",
                options.mask,
                ", ".join(SHAPES) + ", random-NN% or a .png file",
                options.mask is None or is_known_mask(options.mask),
            ),
            ("degraded", "it with --task inpaint", "it with another task", not options.degraded or not options.mask),
            file_rule("mask", options.mask if options.mask and options.mask.lower().endswith(".png") else None),
            place_rule("data", options.data),
        ],
    )


def is_known_mask(mask: str) -> bool:
    """Whether a mask is a shape's name or looks like the name of a PNG file."""
    return mask in SHAPES or random_share(mask) is not None or mask.lower().endswith(".png")


def random_share(mask: str) -> float | None:
    """The share of pixels that ``random-NN%`` hides; None for another mask."""
    match = _RANDOM.fullmatch(mask)
    return None if match is None else int(match[1]) / 100


def _check(options: EditOptions, needed: list[str], rules: list[Rule]) -> None:
    refuse_missing({_flag(name): getattr(options, name) for name in needed})
    common: list[Rule] = [
        ("seed", options.seed, "a number in [0, 2**63)", 0 <= options.seed < 2**63),
        ("batch_size", options.batch_size, "at least 1", options.batch_size >= 1),
    ]
    refuse_broken(
        [
            *((_flag(name), got, expected, holds) for name, got, expected, holds in [*common, *rules]),
            *chain_rules(options),
            ("--real", options.real, "it with --labels data", options.real is None or options.labels == "data"),
            place_rule("--real", options.real),
            place_rule("--out", options.out),
            model_rule(options.model),
        ]
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
