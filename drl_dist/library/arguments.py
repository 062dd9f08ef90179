"""What the library's functions are given, checked before it is compared or computed with."""

from __future__ import annotations

import operator
import os
from typing import NoReturn

from drl_dist.common.errors import UserError
from drl_dist.diffusion.noise import PhiloxNoise

MAX_WHOLE = 2**63 - 1


def whole(name: str, value: object, expected: str, low: int, high: int = MAX_WHOLE) -> int:
    """A whole number of any type that is one, such as those of numpy.

    Args:
        name: of the argument.
        value: as it was given.
        expected: what it should be, for the message.
        low, high: the smallest and the largest that it may be.

    Raises:
        UserError: it is none of these.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = None
    if number is None:
        refuse(name, _shown(value), f"a whole number, {expected}")
    elif not low <= number <= high:
        refuse(name, number, expected)
    else:
        return number


def real(name: str, value: object, expected: str) -> float:
    """A number of any type that is one; arguments and errors as of `whole`."""
    if isinstance(value, bool | str | bytes):
        refuse(name, _shown(value), f"a number, {expected}")
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        refuse(name, _shown(value), f"a number, {expected}")


def place(name: str, value: object, expected: str) -> str:
    """A path or an address as a text; arguments and errors as of `whole`."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        refuse(name, _shown(value), expected)
    return path


def noise_of(seed: object) -> PhiloxNoise:
    """The noise of a seed; errors as of `whole`."""
    return PhiloxNoise(whole("seed", seed, "0 to 2**63 - 1", 0))


def check(name: str, got: object, expected: str, holds: bool) -> None:
    """Raise `UserError` for an argument of which something does not hold."""
    if not holds:
        refuse(name, got, expected)


def refuse(name: str, got: object, expected: str) -> NoReturn:
    """Raise `UserError` for an argument."""
    raise UserError(f"argument {name}", got=got, expected=expected, remedy="correct the argument")


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 and "\n" not in shown else type(value).__name__
