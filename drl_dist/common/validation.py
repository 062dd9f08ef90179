"""Checks of options and of places given as text, which raise `UserError` where they fail."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path

from drl_dist.common.errors import UserError
from drl_dist.common.places import Place, PlaceError, in_full, parse_file, parse_place, path_here, shown

Rule = tuple[str, object, str, bool]
"""(option, value, what is expected, whether the value meets it)."""
# Decimal("1e999999999") is small until it becomes an int of a gigabyte.
_MAX_DIGITS = 30


def refuse_broken(rules: Iterable[Rule]) -> None:
    """Raise `UserError` for the first rule that is broken."""
    for name, got, expected, holds in rules:
        if not holds:
            raise UserError(f"option {name}", got=got, expected=expected, remedy="correct the option")


def place_of(text: str, what: str = "storage URL") -> Place:
    """The folder or file that a text names; see `drl_dist.common.places`.

    Raises:
        UserError: the text names no place that can be used literally; the message begins with `what`.
    """
    try:
        return parse_place(text)
    except PlaceError as error:
        raise _refused(what, error) from error


def file_of(text: str, what: str = "file") -> tuple[str, str]:
    """The folder and the name of the file that a text names; errors as `place_of`."""
    try:
        return parse_file(text)
    except PlaceError as error:
        raise _refused(what, error) from error


def local_of(text: str, what: str) -> Path:
    """The path on this machine that a text names, relative to the working directory; errors as `place_of`."""
    try:
        return path_here(text)
    except PlaceError as error:
        raise _refused(what, error) from error


def _refused(what: str, error: PlaceError) -> UserError:
    return UserError(what, got=error.got, expected=error.expected, remedy="correct it or choose another")


def place_rule(name: str, place: str | None) -> Rule:
    """Rule: an option, if given, names a place that is the same in every process."""
    if place is None:
        return name, place, "a place", True
    try:
        is_absolute = parse_place(place).is_absolute
    except PlaceError as error:
        return name, error.got, error.expected, False
    expected = "a URL or an absolute path"
    if not is_absolute:
        # Not made absolute unasked: of a submitted job, the working directory is a copy that is deleted with the job.
        is_submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        expected += ", as a submitted job runs in a copy of your folder" if is_submitted else f", as {in_full(place)}"
    return name, place, expected, is_absolute


def file_rule(name: str, place: str | None) -> Rule:
    """Rule: an option, if given, names one file that is the same in every process."""
    try:
        if place is not None:
            parse_file(place)
    except PlaceError as error:
        return name, error.got, error.expected, False
    return place_rule(name, place)


def local_rule(name: str, place: str | None) -> Rule:
    """Rule: an option, if given, is an absolute path on this machine."""
    if place is None or place.startswith("/"):
        return place_rule(name, place)
    return name, shown(place), "a folder of this machine, by its absolute path", False


def model_rule(model: str) -> Rule:
    """Rule: ``--model`` names a registered model or a place."""
    if model.startswith("models:/"):
        return "--model", model, "a registered model", True
    name, got, expected, holds = place_rule("--model", model)
    return name, got, expected if holds else f"models:/NAME@latest, models:/NAME/VERSION, {expected}", holds


def refuse_missing(given: Mapping[str, object]) -> None:
    """Raise `UserError` if one of the options that a command needs, by their names, is empty or None."""
    if missing := [name for name, value in given.items() if value in ("", None)]:
        flags = ", ".join(missing)
        raise UserError("command line", got=f"no {flags}", expected=", ".join(given), remedy=f"add {flags}")


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
