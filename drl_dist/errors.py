"""Errors that a user can mend, told in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

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


def place_rule(name: str, place: str | None) -> Rule:
    """An option, if given, names a place that means the same in every process."""
    # A job's working directory is a copy that goes away with the job.
    return name, place, "a URL or an absolute path", place is None or "://" in place or place.startswith("/")


def model_rule(model: str) -> Rule:
    """``--model`` names a registered model or a place."""
    holds = model.startswith("models:/") or place_rule("--model", model)[3]
    return "--model", model, "models:/NAME@latest, models:/NAME/VERSION, a URL or an absolute path", holds
