"""What every command has in common: typed options, user errors in one sentence, `--dry-run`.

Nothing heavy is imported before the options are understood, so that a mistyped field is told at once.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import tyro
from tyro import _errors as tyro_errors

from drl_dist.common.errors import UserError
from drl_dist.common.program import door, stop_on_signals
from drl_dist.config.presets import SETTINGS, preset
from drl_dist.config.rules import check_run, check_without_ray
from drl_dist.config.tree import Experiment, RunConfig, flatten, to_dict
from drl_dist.jobs.common.option_values import registry, switches_as_flags
from drl_dist.tracking.option import choose_option

Options = TypeVar("Options")
Plain = TypeVar("Plain", Experiment, RunConfig)


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions(Experiment):
    """An experiment's fields as options of a command that has chosen the preset."""

    # The door chooses the preset; as an option it would rename the experiment without changing it.
    preset: tyro.conf.Suppress[tyro.conf.Fixed[str]]


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunConfig):
    """A run's fields as options."""

    experiment: Annotated[ExperimentOptions, tyro.conf.arg(name="")]
    setting: str = "t6"
    """t6, t1k, t1k_dsm or t1: the settings of section 4 and Table 2, each a set of defaults (docs/training.md)."""
    without_ray: bool = False
    """Train in this process, on one device, without Ray and MLflow: metrics and pictures go to files in the run's
    folder; --data may also be a .npy file of images."""
    dry_run: bool = False
    """Print the fully resolved config as JSON and start nothing."""


@dataclass(frozen=True, kw_only=True)
class _CategoryOptions(TrainOptions):
    category: str = ""
    """LSUN category: church_outdoor or bedroom."""


def parse_options(kind: type[Options], default: Options, argv: Sequence[str], *, description: str) -> Options:
    """Command-line options over a dataclass of defaults.

    Raises:
        UserError: an unknown option, a missing value, or a value of another type.
        SystemExit: ``--help`` was asked for.
    """
    fields = {
        "--" + name.removeprefix("experiment.").removeprefix("sweep.").replace("_", "-"): value
        for name, value in flatten(to_dict(default)).items()
        if name != "experiment.preset"
    }

    def refuse(event: tyro_errors.ParseErrorEvent) -> None:
        raise _as_user_error(event, list(fields))

    choose_option(fields)
    switches = [name for name, value in fields.items() if isinstance(value, bool)]
    with tyro_errors.on_parse_error(refuse):
        return tyro.cli(
            kind,
            default=default,
            args=switches_as_flags(argv, switches),
            prog=Path(sys.argv[0]).name,
            description=description,
            registry=registry(),
        )


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
    argv = _split_workers(argv)
    setting = early_option(argv, "--setting", list(SETTINGS))
    if categories is None:
        default = TrainOptions(experiment=plain(ExperimentOptions, preset(name, setting)))
        options = parse_options(TrainOptions, default, argv, description=description)
    else:
        category = early_option(argv, "--category", list(categories))
        experiment = plain(ExperimentOptions, preset(categories[category], setting))
        default = _CategoryOptions(experiment=experiment, category=category)
        options = parse_options(_CategoryOptions, default, argv, description=description)
    run = dataclasses.replace(plain(RunConfig, options), experiment=plain(Experiment, options.experiment))
    check_run(run, complete=not options.dry_run)
    if options.without_ray:
        check_without_ray(run)
    return run, options


def train_door(name: str, categories: Mapping[str, str] | None = None) -> NoReturn:
    """The program ``jobs/train_*.py``: parse, then print the config or train."""

    def command() -> int:
        run, options = parse_train_options(name, sys.argv[1:], categories)
        if options.dry_run:
            print(json.dumps(to_dict(run), indent=2, allow_nan=False))
            return 0
        stop_on_signals()
        if options.without_ray:
            from drl_dist.jobs.train.single_device import train_on_one_device

            return train_on_one_device(run)
        from drl_dist.jobs.train.driver import train_run

        return train_run(run)

    door(command)


def _split_workers(argv: Sequence[str]) -> list[str]:
    """``--num-workers MIN:MAX`` in its long form."""
    joined = re.sub(
        r"(^|\0)--num[-_]workers[\0=](\d+):(\d+)(?=\0|$)", r"\1--min-workers\0\2\0--num-workers\0\3", "\0".join(argv)
    )
    return joined.split("\0") if joined else []


def plain(kind: type[Options], value: Plain) -> Options:
    """The same fields in another class of the same family (a base class, or one with no fields of its own)."""
    return kind(**{field.name: getattr(value, field.name) for field in dataclasses.fields(kind)})  # pyright: ignore


def early_option(argv: Sequence[str], option: str, choices: Sequence[str]) -> str:
    """The value of an option that must be known before the defaults are; the first choice if it is not given.

    Raises:
        UserError: it is none of the choices.
    """
    value = choices[0]
    for index, argument in enumerate(argv):
        if argument == option and index + 1 < len(argv):
            value = argv[index + 1]
        elif argument.startswith(option + "="):
            value = argument.partition("=")[2]
    if value not in choices:
        raise UserError(
            f"option {option}", got=value, expected="one of " + ", ".join(choices), remedy="choose one of these"
        )
    return value


def _as_user_error(event: tyro_errors.ParseErrorEvent, known: Sequence[str]) -> UserError:
    if isinstance(event, tyro_errors.UnrecognizedArgs):
        got = event.tokens[0]
        nearest = difflib.get_close_matches(got.partition("=")[0].replace("_", "-"), known, n=1, cutoff=0.6)
        return UserError(
            "option",
            got=got,
            expected="a field of the config",
            remedy=f"did you mean {nearest[0]}? --help lists all" if nearest else "--help lists all",
        )
    if isinstance(event, tyro_errors.InvalidChoice):
        return UserError(
            f"option {event.argument.display_name()}",
            got=event.value,
            expected="one of " + ", ".join(event.choices),
            remedy="choose one of these",
        )
    if isinstance(event, tyro_errors.BadValue):
        return UserError(
            f"option {event.argument.display_name()}",
            got=event.offending_value or "no value",
            expected=event.argument.lowered.metavar or "a value",
            remedy="give a value of this type",
        )
    if isinstance(event, tyro_errors.InstantiationFailure) and event.argument is not None:
        return UserError(
            f"option {event.argument.display_name()}",
            got=_values_in(event.message),
            expected=event.argument.lowered.metavar or "a value",
            remedy="give a value of this type",
        )
    if isinstance(event, tyro_errors.MissingArgs):
        names = ", ".join(argument.arg.display_name() for argument in event.missing_arguments)
        return UserError(
            "command line", got=f"no {names}", expected="all required options", remedy="add what is missing"
        )
    return UserError(
        "command line", got=type(event).__name__, expected="options as --help lists them", remedy="correct the options"
    )


def _values_in(message: str) -> str:
    """The words that the parser could not make a value of, where its message lists them, on one line."""
    line = " ".join(message.split())
    listed = re.search(r"\['.*?'\]|(?<= from )\[\]", line)
    return line if listed is None else " ".join(ast.literal_eval(listed[0])) or "no value"
