"""How values are spelled on the command line: ``1e5`` for whole numbers, ``none`` and ``false`` as words."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from decimal import Decimal, InvalidOperation

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from drl_dist.common.places import shown

_WORDS: dict[str, bool] = {word: True for word in ("true", "yes", "on", "1")}
_WORDS |= {word: False for word in ("false", "no", "off", "0")}
_NONE = ("none", "null")
# Decimal("1e999999999") is small until it becomes an int of a gigabyte.
_MAX_DIGITS = 30


def whole_number(text: str) -> int:
    """A whole number in any usual spelling: ``100000``, ``100_000``, ``1e5``, ``1.5e3``, ``100000.0``.

    Raises:
        ValueError: it is no number, no whole one, or one of more than thirty digits.
    """
    try:
        # Decimal takes underscores anywhere, int between digits alone.
        number = Decimal(text if "_" not in text else int(text))
    except (InvalidOperation, ValueError):
        raise ValueError(f"{shown(text)}, which is not a whole number") from None
    if not number.is_finite() or number.adjusted() >= _MAX_DIGITS or number != number.to_integral_value():
        raise ValueError(f"{shown(text)}, which is not a whole number")
    return int(number)


def finite_number(text: str) -> float:
    """A floating-point number; infinity and NaN are none, since no option means anything by them and JSON has none.

    Raises:
        ValueError: it is not a finite number.
    """
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{shown(text)}, which is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)}, which is not a finite number")
    return number


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
