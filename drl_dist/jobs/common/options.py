"""Options of every command: typed, and refused in one sentence.

Nothing heavy is imported before the options are understood, so that a mistyped field is refused at once.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeVar

import tyro
from tyro import _errors as tyro_errors
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from drl_dist.common.errors import UserError
from drl_dist.common.nested import flatten, to_dict
from drl_dist.common.validation import finite_number, whole_number
from drl_dist.tracking.server.address import choose_option

Options = TypeVar("Options")


def parse_options(
    kind: type[Options], default: Options, argv: Sequence[str], *, description: str, prog: str | None = None
) -> Options:
    """Command-line options over a dataclass of defaults.

    Args:
        prog: the command as help and messages call it, by default the name of the script.

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
            prog=prog or Path(sys.argv[0]).name,
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


_WORDS: dict[str, bool] = {word: True for word in ("true", "yes", "on", "1")}
_WORDS |= {word: False for word in ("false", "no", "off", "0")}
_NONE = ("none", "null")


def _nothing(text: str) -> None:
    if text.lower() not in _NONE:
        raise ValueError(f"{text}, which is not none")


def registry() -> ConstructorRegistry:
    """The spellings above, for `tyro.cli`."""
    made = ConstructorRegistry()

    @made.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[object] | None:
        if info.type is int:
            return PrimitiveConstructorSpec(
                nargs=1,
                metavar="INT",
                instance_from_str=lambda words: whole_number(words[0]),
                is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
                str_from_instance=lambda value: [str(value)],
            )
        if info.type is float:
            return PrimitiveConstructorSpec(
                nargs=1,
                metavar="FLOAT",
                instance_from_str=lambda words: finite_number(words[0]),
                is_instance=lambda value: isinstance(value, int | float) and not isinstance(value, bool),
                str_from_instance=lambda value: [str(value)],
            )
        if info.type is type(None):
            return PrimitiveConstructorSpec(
                nargs=1,
                metavar="none",
                instance_from_str=lambda words: _nothing(words[0]),
                is_instance=lambda value: value is None,
                str_from_instance=lambda _: ["none"],
            )
        return None

    return made


def switches_as_flags(argv: Sequence[str], switches: Collection[str]) -> list[str]:
    """``--x.switch false`` and ``--x.switch=no`` as ``--x.no-switch``, which the parser knows; the rest as it is.

    Args:
        argv: the arguments.
        switches: options that are true or false, such as ``--train.horizontal-flip``.
    """
    found: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        name = option.replace("_", "-")
        if name in switches and not equals and rest and rest[0].lower() in _WORDS:
            value = rest.pop(0)
        if name not in switches or value.lower() not in _WORDS:
            found.append(word)
            continue
        *parents, last = name.removeprefix("--").split(".")
        found.append(name if _WORDS[value.lower()] else "--" + ".".join((*parents, f"no-{last}")))
    return found
