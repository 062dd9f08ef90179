"""The options of ``jobs/train_*.py``, and what ``jobs/train.py`` shares: a preset's fields, how the run is made."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NoReturn, TypeVar

import tyro

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.imports import no_collection
from drl_dist.common.nested import to_dict
from drl_dist.common.validation import refuse_broken
from drl_dist.config.from_data import left_to_data
from drl_dist.config.presets import FIRST_STEPS, NEWER_FIELDS, SETTINGS, default_setting, of_length, preset
from drl_dist.config.rules import check_run, check_without_ray
from drl_dist.config.tree import Experiment, RunConfig
from drl_dist.jobs.common.entry import run_command
from drl_dist.jobs.common.options import parse_options

Options = TypeVar("Options")
Plain = TypeVar("Plain", Experiment, RunConfig)
Wanted = tuple[RunConfig, bool, tuple[str, ...]]
"""A run, whether it does without Ray, and what `chosen_fields` finds."""


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions(Experiment):
    """An experiment's fields as options of a command that has chosen the preset."""

    # The command chooses the preset; as an option it would rename the experiment without changing it.
    preset: tyro.conf.Suppress[tyro.conf.Fixed[str]]


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunConfig):
    """A run's fields as options."""

    experiment: Annotated[ExperimentOptions, tyro.conf.arg(name="")]
    setting: str = "t6"
    """unet, or one of the paper, t6, t1k, t1k_dsm or t1: each is a set of defaults (docs/training.md)."""
    without_ray: bool = False
    """Train in this process, on one device, without Ray and MLflow: metrics and pictures go to files in the run's
    folder; --data may also be a .npy file of images."""
    dry_run: bool = False
    """Print the fully resolved config as JSON and start nothing."""
    estimate: bool = False
    """As dry_run, and tell parameters, FLOP, memory, epochs and hours on stderr, which takes seconds."""
    tflops: float | None = None
    """Operations that a worker makes in a second, in 10**12; with it, estimate tells how long the run takes."""


@dataclass(frozen=True, kw_only=True)
class _CategoryOptions(TrainOptions):
    category: str = ""
    """LSUN category: church_outdoor or bedroom."""


def parse_train(name: str, argv: Sequence[str], categories: Mapping[str, str] | None = None) -> tuple[RunConfig, bool]:
    """The run that a training command describes, and whether it is a dry run; see `parse_train_options`."""
    run, options = parse_train_options(name, argv, categories)
    return run, options.dry_run


def parse_train_options(
    name: str, argv: Sequence[str], categories: Mapping[str, str] | None = None
) -> tuple[RunConfig, TrainOptions]:
    """The run that a training command describes, and all of its options.

    Args:
        name: the preset whose values are the defaults.
        argv: the command's arguments.
        categories: presets by LSUN category; the first is the default. `name` is ignored if they are given.

    Raises:
        UserError: an option, a category or a combination of values that no run can have.
    """
    description = "Train by diffusion recovery likelihood; the same --run-name resumes."
    argv = split_workers(argv)
    if categories is None:
        setting = setting_option(argv, name)
        default = TrainOptions(experiment=plain(ExperimentOptions, preset(name, setting)), setting=setting)
        options = parse_options(TrainOptions, default, argv, description=description)
    else:
        category = early_option(argv, "--category", list(categories))
        setting = setting_option(argv, categories[category])
        experiment = plain(ExperimentOptions, preset(categories[category], setting))
        default = _CategoryOptions(experiment=experiment, category=category, setting=setting)
        options = parse_options(_CategoryOptions, default, argv, description=description)
    run = shortened(plain_run(options), plain(Experiment, default.experiment), argv)
    options = dataclasses.replace(options, dry_run=starts_nothing(options))
    check_run(run, complete=not options.dry_run)
    if options.without_ray:
        check_without_ray(run)
    return run, options


def train_command(name: str, categories: Mapping[str, str] | None = None) -> NoReturn:
    """The program ``jobs/train_*.py``; arguments as for `parse_train_options`."""

    def parse(argv: Sequence[str]) -> tuple[Wanted, bool]:
        run, options = parse_train_options(name, argv, categories)
        if options.dry_run:
            tell_what_is_left(run.experiment)
            tell_estimate(run, options)
        return (run, options.without_ray, chosen_fields(argv)), options.dry_run

    run_command(parse, train_wanted, as_json=lambda wanted: to_dict(wanted[0]))


def starts_nothing(options: TrainOptions) -> bool:
    """Whether only the config, and maybe an estimate, is wanted.

    Raises:
        UserError: ``--tflops`` is no rate.
    """
    refuse_broken([("--tflops", options.tflops, "a positive number", options.tflops is None or options.tflops > 0)])
    return options.dry_run or options.estimate or options.tflops is not None


def shortened(run: RunConfig, default: Experiment, argv: Sequence[str]) -> RunConfig:
    """The run; where the command line makes it shorter than the first objective of its defaults, and does not say what
    becomes of that, with the steps that the run has begun with, or, if it is new, with the share that the defaults
    have, which a line on stderr says."""
    experiment = run.experiment
    first, steps = default.optim.first_objective_steps, experiment.train.num_steps
    if FIRST_STEPS in given_fields(argv) or experiment.optim.first_objective_steps < steps or steps < 2:
        return run
    share, begun = of_length(default, steps).optim.first_objective_steps, _begun_with(run)
    if begun is None:
        print(
            f"{FIRST_STEPS}: {share}, the share of {counted(steps, 'step')} that {first} of "
            f"{default.train.num_steps} are",
            file=sys.stderr,
            flush=True,
        )
    elif begun < steps:
        share = begun
    optim = dataclasses.replace(experiment.optim, first_objective_steps=share)
    return dataclasses.replace(run, experiment=dataclasses.replace(experiment, optim=optim))


def _begun_with(run: RunConfig) -> int | None:
    """Steps of the first objective of a run that exists; None if there is none, or none that can be looked at yet."""
    if not run.storage or not run.run_name:
        return None
    from drl_dist.checkpoints.run_record import first_steps_begun

    try:
        return first_steps_begun(run.url)
    except UserError:
        # Whoever starts the run says so; nothing was checked before.
        return None


def given_fields(argv: Sequence[str]) -> set[str]:
    """The fields that a command line gives."""
    return {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}


def tell_what_is_left(experiment: Experiment) -> None:
    """Say, beside a resolved config, which of its fields are null because the data give them their numbers."""
    if names := left_to_data(experiment):
        print(f"null here, and taken from the statistics of the data: {', '.join(names)}", file=sys.stderr)


def tell_estimate(run: RunConfig, options: TrainOptions) -> None:
    """Say beside a resolved config what the run takes, or, in a terminal, how to ask for it.

    Raises:
        UserError: it cannot be told.
    """
    if not options.estimate and options.tflops is None:
        # For somebody who looks at the config; a program that reads it, such as the demonstration, has no use for it.
        if sys.stdout.isatty() and sys.stderr.isatty():
            print("--estimate also tells parameters, FLOP, memory, epochs and hours", file=sys.stderr)
        return
    from drl_dist.jobs.common.estimate import estimate_lines

    print(*estimate_lines(run, tflops=options.tflops), sep="\n", file=sys.stderr)


def chosen_fields(argv: Sequence[str]) -> tuple[str, ...]:
    """The fields, of those in which a run that exists may differ, that a command line gives; see
    `drl_dist.checkpoints.run_record.continued`."""
    given = given_fields(argv)
    return tuple(name for name in (*NEWER_FIELDS, FIRST_STEPS) if name in given)


def train_wanted(wanted: Wanted) -> int:
    """Train a run, on Ray or without it; the exit status."""
    run, without_ray, chosen = wanted
    if without_ray:
        from drl_dist.jobs.train.single_device import train_on_one_device

        return train_on_one_device(run, chosen)
    with no_collection():
        from drl_dist.jobs.train.driver import train_run

    return train_run(run, chosen)


def split_workers(argv: Sequence[str]) -> list[str]:
    """``--num-workers MIN:MAX`` in its long form."""
    joined = re.sub(
        r"(^|\0)--num[-_]workers[\0=](\d+):(\d+)(?=\0|$)", r"\1--min-workers\0\2\0--num-workers\0\3", "\0".join(argv)
    )
    return joined.split("\0") if joined else []


def plain(kind: type[Options], value: Plain) -> Options:
    """The same fields in another class of the same family (a base class, or one with no fields of its own)."""
    return kind(**{field.name: getattr(value, field.name) for field in dataclasses.fields(kind)})  # pyright: ignore


def plain_run(options: TrainOptions) -> RunConfig:
    """The run that options describe."""
    return dataclasses.replace(plain(RunConfig, options), experiment=plain(Experiment, options.experiment))


def setting_option(argv: Sequence[str], name: str) -> str:
    """The setting of a command: as given, or the default of the preset of this name; raises as `early_option`."""
    usual = default_setting(name)
    return early_option(argv, "--setting", [usual, *(other for other in SETTINGS if other != usual)])


def early_option(argv: Sequence[str], option: str, choices: Sequence[str]) -> str:
    """The value of an option that must be known before the defaults are; the first choice if it is not given.

    Raises:
        UserError: it is none of the choices.
    """
    value = early_text(argv, option)
    if value is None:
        return choices[0]
    if value not in choices:
        raise UserError(
            f"option {option}", got=value, expected="one of " + ", ".join(choices), remedy="choose one of these"
        )
    return value


def early_text(argv: Sequence[str], option: str) -> str | None:
    """The last value that is given to an option, before the options are understood; None if there is none."""
    value = None
    for index, argument in enumerate(argv):
        if argument == option and index + 1 < len(argv):
            value = argv[index + 1]
        elif argument.startswith(option + "="):
            value = argument.partition("=")[2]
    return value
