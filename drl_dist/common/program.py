"""Running a command as a program: exit statuses, and signals that stop it so that the same command resumes."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn

from drl_dist.common.errors import UserError

EXIT_USER_ERROR = 2
"""Exit status of every command that ends with a `UserError`."""
EXIT_STOPPED = 75
"""Exit status of every command that was stopped and resumes when repeated: "temporary failure" in sysexits.h."""
EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C of every command that cannot guarantee to resume, as shells report it."""
EXIT_NO_READER = 141
"""Exit status of every command whose output nobody reads any more, as in ``… --help | head``; as shells report it."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that stop a command: sent by `ray job stop` and Kubernetes, by Ctrl-C, and when a terminal closes."""


class Stopped(BaseException):
    """The job was stopped on request; nothing is lost, and the same command resumes it.

    A BaseException like KeyboardInterrupt, because it is not an error.

    Args:
        cause: what stopped the job, e.g. ``"SIGTERM"``.
        done: progress at that point, e.g. ``"after step 40"``; empty if it is reported elsewhere.
    """

    def __init__(self, cause: str, done: str = "") -> None:
        self.cause, self.done = cause, done
        super().__init__(f"stopped by {cause}{' ' if done else ''}{done}; the same command resumes")


def entry_point(command: Callable[[], int]) -> NoReturn:
    """Run a command as a program and exit: on `UserError` and `Stopped` with their message on stderr and status 2 or
    75, on Ctrl-C with "interrupted" and status 130, and without a word and status 141 once nobody reads its output."""
    try:
        try:
            status = command()
        except (UserError, Stopped, KeyboardInterrupt, SystemError) as error:
            # Extension modules, such as Ray's, may turn what a signal raised within them into a SystemError.
            end = error.__cause__ if isinstance(error, SystemError) else error
            if isinstance(end, UserError):
                status = EXIT_USER_ERROR
            elif isinstance(end, Stopped):
                status = EXIT_STOPPED
            elif isinstance(end, KeyboardInterrupt):
                end, status = "interrupted", EXIT_INTERRUPTED
            else:
                raise
            print(end, file=sys.stderr, flush=True)
        finally:
            # Here, where it can be answered, not while the interpreter ends.
            sys.stdout.flush()
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream.fileno())]
        if not unread:
            # Of a connection, not of the output.
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in unread:
            os.dup2(nowhere, stream.fileno())
        status = EXIT_NO_READER
    sys.exit(status)


def interrupt_quietly() -> None:
    """Make Ctrl-C end this process with one line and status 130 where nothing catches it, for commands that are still
    importing; `entry_point` does the rest."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            before(kind, error, trace)
            return
        print("interrupted", file=sys.stderr, flush=True)
        # The interpreter would send itself the signal again, for which a parent sees no exit status.
        os._exit(EXIT_INTERRUPTED)

    sys.excepthook = hook


def _has_no_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def stop_on_signals() -> None:
    """Make the next of `SIGNALS` raise `Stopped` in the main thread; the one after it ends the process at once.

    Signals that are ignored, as under nohup, stay ignored.
    """
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _stop)


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    # Call `stop_on_signals` again to catch a further signal.
    for other in SIGNALS:
        if signal.getsignal(other) is _stop:
            signal.signal(other, signal.SIG_DFL)
    raise Stopped(signal.Signals(signum).name)
