"""Options of ``jobs/sweep.py``: those of a training run, and those of the sweep itself."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import tyro

from drl_dist.common.errors import UserError
from drl_dist.common.nested import to_dict
from drl_dist.common.validation import file_of
from drl_dist.config.presets import TABLE_6, preset
from drl_dist.config.rules import check_run
from drl_dist.config.tree import Experiment, RunConfig
from drl_dist.jobs.common.options import parse_options
from drl_dist.jobs.common.settings_text import SettingsTextError, from_file, from_json
from drl_dist.jobs.sweep.proposals import grid_size
from drl_dist.jobs.sweep.space import Space, default_space, parse_space
from drl_dist.jobs.train.options import (
    ExperimentOptions,
    TrainOptions,
    early_option,
    plain,
    plain_run,
    setting_option,
    shortened,
    starts_nothing,
    tell_estimate,
    tell_what_is_left,
)

DEFAULT_TRIALS = 16
REPORTS = 10
"""Scores of a trial, unless `tracking.score_every_steps` is given."""
MAX_TRIALS = 10_000
MIN_RESCORE_IMAGES = 10


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options of ``jobs/sweep.py`` that are not a training run's."""

    sweep_name: str = ""
    """The sweep's name; the same name resumes the sweep."""
    space: str | None = None
    """What is varied, as JSON: dotted fields and lists of values or ranges (docs/sweeps.md); by default N, beta1 and
    c_t."""
    space_file: str | None = None
    """The same as a YAML (1.2) or JSON file: a path or a URL."""
    search: Literal["grid", "random", "optuna"] = "random"
    """grid: all combinations; random: draws keyed by --search-seed; optuna: learns from earlier trials."""
    num_samples: int | None = None
    """Trials in all; by default 16, and all combinations for a grid."""
    max_concurrent: int | None = None
    """Trials at a time; by default, and at most, as many as the cluster has room for."""
    search_seed: int = 0
    """Keys random and Optuna's draws."""
    early_stopping: bool = True
    """Stop trials whose score is behind, by asynchronous successive halving."""
    grace_images: int | None = None
    """Images that a trial has seen before it can be stopped; by default the warm-up and a tenth of the trial."""
    reduction_factor: float = 3.0
    """One in so many of the trials that reach a rung continues; rungs lie this factor apart in images seen."""
    max_saturated: float | None = None
    """Share of generated pixels at the ends of the range above which a trial counts as diverged; by default nine
    tenths of the way from the share in real images to 1."""
    max_displacement: float = 2.0
    """Root-mean-square move of the chains, per pixel, above which a trial counts as diverged; the range of pixels is
    2."""
    max_gap_growth: float = 10.0
    """A trial counts as diverged when a noise level's log-density gap is this many times the largest of the trial's
    first steps that have gaps."""
    rescore_trials: int = 3
    """Trials of best score that are scored again at the end; 0 leaves this out."""
    rescore_images: int | None = None
    """Images of each of these scores; by default 4096, or as many as the data holds."""
    rescore_seeds: tuple[int, ...] = (0, 1)
    """Seeds of the images, the same for all trials; a score is the mean over them."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep whose every field has been checked."""

    preset: str
    setting: str
    """What the base was made from; see `drl_dist.config.presets.preset`."""
    base: RunConfig
    """What trials have in common: also their score's schedule, features and number of images."""
    space: Space
    options: SweepOptions
    num_trials: int
    grace_images: int
    max_images: int
    """Images that the longest trial sees."""

    @property
    def model_name(self) -> str:
        """Registered model of the trials: their own, so that a preset's @latest stays what it is."""
        return f"{self.base.experiment.preset}-{self.options.sweep_name}"

    def as_json(self) -> dict[str, Any]:
        """The plan as ``--dry-run`` shows it."""
        return {
            "preset": self.preset,
            "setting": self.setting,
            "num_trials": self.num_trials,
            "space": self.space.as_json(),
            "grace_images": self.grace_images,
            "max_images": self.max_images,
            "options": to_dict(self.options),
            "base": to_dict(self.base),
        }


def plan_sweep(
    base: RunConfig, options: SweepOptions, *, preset: str, setting: str, complete: bool = True
) -> SweepPlan:
    """The sweep that options describe; nothing but a space file is read.

    Args:
        base: a run without a name, checked.
        preset, setting: what it was made from.
        complete: whether it is to start, which needs a name, data and storage.

    Raises:
        UserError: no sweep can have these options.
    """
    _check(options, base, complete=complete)
    space = parse_space(_given_space(options, base), base)
    num_trials = _num_trials(options, space)
    base = _with_reports(base)
    warm, longest = _images(space, base)
    grace = options.grace_images
    if grace is None:
        grace = min(warm + longest // 10, longest)
    if options.early_stopping and warm > longest:
        print(
            f"no trial is stopped early: the warm-up takes {warm} images, the longest trial sees {longest}; "
            "make trials longer (--train.num-steps) or the warm-up shorter (--optim.warmup-steps)",
            file=sys.stderr,
            flush=True,
        )
        grace = longest
    elif options.early_stopping and not warm <= grace <= longest:
        raise UserError(
            "option --grace-images",
            got=grace,
            expected=f"{warm} (the images of the warm-up) to {longest} (those of the longest trial)",
            remedy="correct the option",
        )
    return SweepPlan(
        preset=preset,
        setting=setting,
        base=base,
        space=space,
        options=options,
        num_trials=num_trials,
        grace_images=grace,
        max_images=longest,
    )


def _given_space(options: SweepOptions, base: RunConfig) -> object:
    if options.space is not None and options.space_file is not None:
        raise UserError(
            "command line", got="--space and --space-file", expected="one of them", remedy="leave one of them out"
        )
    if options.space is not None:
        try:
            return from_json(options.space)
        except SettingsTextError as error:
            raise UserError(
                "option --space", got=error, expected="a JSON object of fields", remedy="correct the option"
            ) from error
    if options.space_file is None:
        return default_space(base)
    from drl_dist.data.filesystem import Folder

    folder, name = file_of(options.space_file, "option --space-file")
    try:
        return from_file(Folder(folder).read(name))
    except (OSError, SettingsTextError) as error:
        raise UserError(
            "option --space-file",
            got=f"{options.space_file}: {' '.join(str(error).split())[:200]}",
            expected="a YAML or JSON file of fields",
            remedy="correct the option or the file",
        ) from error


def _num_trials(options: SweepOptions, space: Space) -> int:
    if options.search != "grid":
        return options.num_samples or DEFAULT_TRIALS
    size = grid_size(space)
    if size > MAX_TRIALS or options.num_samples not in (None, size):
        raise UserError(
            "option --num-samples" if options.num_samples not in (None, size) else "space",
            got=f"{options.num_samples} for a grid of {size}" if size <= MAX_TRIALS else f"a grid of {size} points",
            expected=f"all {size} points" if size <= MAX_TRIALS else f"at most {MAX_TRIALS} trials",
            remedy="leave the option out, or use --search random",
        )
    return size


def _with_reports(base: RunConfig) -> RunConfig:
    """The run with a schedule of scores, and a checkpoint at each, so that little is made again after a kill."""
    every = base.tracking.score_every_steps or max(1, base.experiment.train.num_steps // REPORTS)
    given = base.checkpoint.every_steps
    return replace(
        base,
        tracking=replace(base.tracking, score_every_steps=every),
        checkpoint=replace(base.checkpoint, every_steps=every if given == "auto" else min(given, every)),
    )


def _images(space: Space, base: RunConfig) -> tuple[int, int]:
    """Images of the longest warm-up and of the longest trial that the space holds."""
    batch, warm = (
        max([default, *_values(space, name)])
        for name, default in (
            ("train.batch_size", base.experiment.train.batch_size),
            ("optim.warmup_steps", base.experiment.optim.warmup_steps),
        )
    )
    return math.ceil(warm * batch), math.ceil(base.experiment.train.num_steps * batch)


def _values(space: Space, name: str) -> list[Any]:
    return [values[name] for values in space.corners()] if name in space.dimensions else []


def _check(options: SweepOptions, base: RunConfig, *, complete: bool) -> None:
    if complete and not options.sweep_name:
        raise UserError("command line", got="no --sweep-name", expected="--sweep-name", remedy="add --sweep-name")
    is_named = bool(options.sweep_name)
    if is_named and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", options.sweep_name) is None:
        raise UserError(
            "option --sweep-name",
            got=options.sweep_name,
            expected="up to 100 letters, digits, '.', '_' and '-', beginning with a letter or a digit",
            remedy="choose another name",
        )
    if base.start_from is not None:
        raise UserError(
            "option --start-from",
            got=base.start_from,
            expected="trials from their first step: one that continues from other settings says little about its own",
            remedy="leave the option out",
        )
    seeds = options.rescore_seeds
    count = options.num_samples
    is_range = options.max_saturated is None or 0 < options.max_saturated <= 1
    rules: list[tuple[str, object, str, bool]] = [
        ("--num-samples", count, f"1 to {MAX_TRIALS}", count is None or 1 <= count <= MAX_TRIALS),
        (
            "--max-concurrent",
            options.max_concurrent,
            "none, or at least 1",
            options.max_concurrent is None or options.max_concurrent >= 1,
        ),
        ("--search-seed", options.search_seed, "a number in [0, 2**63)", 0 <= options.search_seed < 2**63),
        (
            "--grace-images",
            options.grace_images,
            "at least 1",
            options.grace_images is None or options.grace_images > 0,
        ),
        ("--reduction-factor", options.reduction_factor, "a number above 1", options.reduction_factor > 1),
        ("--max-saturated", options.max_saturated, "a number in (0, 1]", is_range),
        ("--max-displacement", options.max_displacement, "a positive number", options.max_displacement > 0),
        ("--max-gap-growth", options.max_gap_growth, "at least 1", options.max_gap_growth >= 1),
        ("--rescore-trials", options.rescore_trials, "at least 0", options.rescore_trials >= 0),
        (
            "--rescore-images",
            options.rescore_images,
            f"none, or at least {MIN_RESCORE_IMAGES}",
            options.rescore_images is None or options.rescore_images >= MIN_RESCORE_IMAGES,
        ),
        (
            "--rescore-seeds",
            seeds,
            "one or more different numbers in [0, 2**63)",
            bool(seeds) and len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds),
        ),
    ]
    for name, got, expected, holds in rules:
        if not holds:
            raise UserError(f"option {name}", got=got, expected=expected, remedy="correct the option")
    missing = [name for name in ("data", "storage") if not getattr(base, name)]
    if complete and missing:
        flags = ", ".join("--" + name for name in missing)
        raise UserError("command line", got=f"no {flags}", expected="--data and --storage", remedy=f"add {flags}")


@dataclass(frozen=True, kw_only=True)
class _SweepRun(TrainOptions):
    # Trials are named after their sweep.
    run_name: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""
    # Trials are too short to outlive a machine by continuing without it.
    min_workers: tyro.conf.Suppress[tyro.conf.Fixed[int | None]] = None
    # A trial that diverges has shown what it was to show.
    max_rollbacks: tyro.conf.Suppress[tyro.conf.Fixed[int]] = 0
    # Nor do trials have processes that wait for a restart.
    spare_processes: tyro.conf.Suppress[tyro.conf.Fixed[bool]] = True
    # Trials have a registered model of their own.
    model_name: tyro.conf.Suppress[tyro.conf.Fixed[str | None]] = None
    preset: str = ""
    """Row of Table 6, or digits or fashion_mnist: the values that trials start from."""
    sweep: Annotated[SweepOptions, tyro.conf.arg(name="")] = field(default_factory=SweepOptions)


def parse_sweep(argv: Sequence[str]) -> tuple[SweepPlan, bool]:
    """The sweep that a command describes, and whether it is a dry run.

    Raises:
        UserError: an option, a space or a combination of values that no sweep can have.
    """
    names = list(TABLE_6)
    if not any(word == "--preset" or word.startswith("--preset=") or word in ("-h", "--help") for word in argv):
        raise UserError("command line", got="no --preset", expected="one of " + ", ".join(names), remedy="add --preset")
    name = early_option(argv, "--preset", names)
    setting = setting_option(argv, name)
    default = _SweepRun(experiment=plain(ExperimentOptions, preset(name, setting)), preset=name, setting=setting)
    description = "Try hyperparameters as short runs and rank them; the same --sweep-name resumes."
    options = parse_options(_SweepRun, default, argv, description=description)
    base = shortened(plain_run(options), plain(Experiment, default.experiment), argv)
    is_dry_run = starts_nothing(options)
    check_run(base, complete=False)
    plan = plan_sweep(base, options.sweep, preset=name, setting=setting, complete=not is_dry_run)
    if is_dry_run:
        tell_what_is_left(base.experiment)
        # Of a trial with the values that all start from.
        tell_estimate(base, options)
    return plan, is_dry_run
