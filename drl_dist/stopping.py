"""Stopping a job by a signal, so that the same command goes on with it."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

from drl_dist.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What `ray job stop` and Kubernetes send, Ctrl-C, and the end of a terminal."""


def stop_on_signals() -> None:
    """Let the next of `SIGNALS` raise `Stopped` in the main thread; the one after it ends the process at once.

    Those that are ignored, as under nohup, stay so.
    """
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _stop)


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    # Whoever wants another one to be told again arms them again.
    for other in SIGNALS:
        if signal.getsignal(other) is _stop:
            signal.signal(other, signal.SIG_DFL)
    raise Stopped(signal.Signals(signum).name)
