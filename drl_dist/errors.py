"""Errors that a user can mend, told in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from drl_dist.places import Place, PlaceError, parse_file, parse_place, path_here, shown

EXIT_USER_ERROR = 2
"""Exit status of every command that ends with a `UserError`."""
EXIT_STOPPED = 75
"""Exit status of every command that was stopped and goes on when it is repeated: "temporary failure" in sysexits.h."""
EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C of every command that cannot promise to go on, as shells tell of it."""


class UserError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence: what was wrong, what was found, what was expected, and what to do.
    Commands print it alone, without a traceback, and exit with `EXIT_USER_ERROR`.

    Args:
        what: the thing that is wrong, e.g. ``"shard digits-00003.tar"``.
        got: what was found.
        expected: what would have been accepted.
        remedy: what to do about it, as an imperative phrase.
    """

    def __init__(self, what: str, *, got: object, expected: object, remedy: str) -> None:
        self.what, self.got, self.expected, self.remedy = what, got, expected, remedy
        super().__init__(f"{what}: got {got}, expected {expected}; {remedy}.")

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default reduction across process boundaries.
        return (_rebuild, (self.what, self.got, self.expected, self.remedy))


def _rebuild(what: str, got: object, expected: object, remedy: str) -> UserError:
    return UserError(what, got=got, expected=expected, remedy=remedy)


class Stopped(BaseException):
    """Somebody stopped the job; nothing is lost, and the same command goes on. As KeyboardInterrupt, it is no error.

    Args:
        cause: what stopped it, e.g. ``"SIGTERM"``.
        done: how far it came, e.g. ``"after step 40"``; empty if that is told elsewhere.
    """

    def __init__(self, cause: str, done: str = "") -> None:
        self.cause, self.done = cause, done
        super().__init__(f"stopped by {cause}{' ' if done else ''}{done}; the same command resumes")


def door(command: Callable[[], int]) -> NoReturn:
    """Run a command as a program: `UserError` and `Stopped` become their sentence on stderr and exit status 2 or 75,
    Ctrl-C a word and 130."""
    try:
        status = command()
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        status = EXIT_USER_ERROR
    except Stopped as stop:
        print(stop, file=sys.stderr, flush=True)
        status = EXIT_STOPPED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = EXIT_INTERRUPTED
    sys.exit(status)


Rule = tuple[str, object, str, bool]
"""An option, its value, what is expected of it, and whether that holds."""


def refuse_broken(rules: Iterable[Rule]) -> None:
    """Raise `UserError` for the first rule that does not hold."""
    for name, got, expected, holds in rules:
        if not holds:
            raise UserError(f"option {name}", got=got, expected=expected, remedy="correct the option")


def place_of(text: str, what: str = "storage URL") -> Place:
    """The folder or file that a text names; see `drl_dist.places`.

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
