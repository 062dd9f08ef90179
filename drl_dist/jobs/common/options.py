"""Options of every command: typed, and refused in one sentence.

Nothing heavy is imported before the options are understood, so that a mistyped field is refused at once.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro
from tyro import _errors as tyro_errors

from drl_dist.common.errors import UserError
from drl_dist.config.tree import flatten, to_dict
from drl_dist.jobs.common.option_values import registry, switches_as_flags
from drl_dist.tracking.option import choose_option

Options = TypeVar("Options")


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
