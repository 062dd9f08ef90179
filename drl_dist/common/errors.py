"""`UserError`, for mistakes that the user can correct; its message is one sentence."""

from __future__ import annotations


class UserError(Exception):
    """The user's input cannot be used.

    The message is one sentence: what was wrong, what was found, what was expected, and what to do.
    Commands print only this message, without a traceback, and exit with status 2.

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


def described(error: BaseException) -> str:
    """An error's type and message on one line."""
    return f"{type(error).__name__} ({' '.join(str(error).split())[:200]})"
