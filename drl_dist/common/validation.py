"""Rules on options, and places read from text, with `UserError` for what breaks them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from drl_dist.common.errors import UserError
from drl_dist.common.places import Place, PlaceError, parse_file, parse_place, path_here, shown

Rule = tuple[str, object, str, bool]
"""An option, its value, what is expected of it, and whether that holds."""


def refuse_broken(rules: Iterable[Rule]) -> None:
    """Raise `UserError` for the first rule that does not hold."""
    for name, got, expected, holds in rules:
        if not holds:
            raise UserError(f"option {name}", got=got, expected=expected, remedy="correct the option")


def place_of(text: str, what: str = "storage URL") -> Place:
    """The folder or file that a text names; see `drl_dist.common.places`.

    Raises:
        UserError: it names none that can be used as it is written; `what` says whose it is.
    """
    try:
        return parse_place(text)
    except PlaceError as error:
        raise _refused(what, error) from error


def file_of(text: str, what: str = "file") -> tuple[str, str]:
    """The folder and the name of the one file that a text names; errors as `place_of`."""
    try:
        return parse_file(text)
    except PlaceError as error:
        raise _refused(what, error) from error


def local_of(text: str, what: str) -> Path:
    """The path, on this machine, that a text names, relative to the working directory; errors as `place_of`."""
    try:
        return path_here(text)
    except PlaceError as error:
        raise _refused(what, error) from error


def _refused(what: str, error: PlaceError) -> UserError:
    return UserError(what, got=error.got, expected=error.expected, remedy="write it in another way, or choose another")


def place_rule(name: str, place: str | None) -> Rule:
    """An option, if given, names a place that means the same in every process."""
    if place is None:
        return name, place, "a place", True
    try:
        is_absolute = parse_place(place).is_absolute
    except PlaceError as error:
        return name, error.got, error.expected, False
    # A job's working directory is a copy that goes away with the job.
    return name, place, "a URL or an absolute path", is_absolute


def file_rule(name: str, place: str | None) -> Rule:
    """An option, if given, names one file that means the same in every process."""
    try:
        if place is not None:
            parse_file(place)
    except PlaceError as error:
        return name, error.got, error.expected, False
    return place_rule(name, place)


def local_rule(name: str, place: str | None) -> Rule:
    """An option, if given, names a place on the machine by its absolute path."""
    if place is None or place.startswith("/"):
        return place_rule(name, place)
    return name, shown(place), "a folder of this machine, by its absolute path", False


def model_rule(model: str) -> Rule:
    """``--model`` names a registered model or a place."""
    if model.startswith("models:/"):
        return "--model", model, "a registered model", True
    name, got, expected, holds = place_rule("--model", model)
    return name, got, expected if holds else f"models:/NAME@latest, models:/NAME/VERSION, {expected}", holds


def refuse_missing(given: Mapping[str, object]) -> None:
    """Raise `UserError` if one of the options that a command needs, by their names, is empty or None."""
    if missing := [name for name, value in given.items() if value in ("", None)]:
        flags = ", ".join(missing)
        raise UserError("command line", got=f"no {flags}", expected=", ".join(given), remedy=f"add {flags}")
