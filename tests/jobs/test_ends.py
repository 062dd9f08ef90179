"""How commands end: their message, and their exit status."""

from __future__ import annotations

import pytest

from drl_dist.common.errors import UserError
from drl_dist.common.program import Stopped, entry_point


def raised_within(cause: BaseException) -> SystemError:
    """What Ray's extension module makes of an exception of a signal's handler."""
    error = SystemError("<cyfunction CoreWorker.wait> returned a result with an exception set")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("a", got="b", expected="c", remedy="d"), 2, "a: got b, expected c; d.\n"),
        (Stopped("SIGTERM"), 75, "stopped by SIGTERM; the same command resumes\n"),
        (raised_within(Stopped("SIGTERM")), 75, "stopped by SIGTERM; the same command resumes\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (raised_within(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_an_end_is_one_line_and_a_status(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise error

    with pytest.raises(SystemExit) as end:
        entry_point(command)
    assert end.value.code == status
    assert capsys.readouterr().err == message


def test_other_errors_keep_their_traceback() -> None:
    def command() -> int:
        raise SystemError("a fault of ours") from ValueError()

    with pytest.raises(SystemError, match="a fault of ours"):
        entry_point(command)
