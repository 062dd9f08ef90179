"""Lines that say what a command waits for while nothing else is printed."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO

from drl_dist.common.durations import duration

SILENT_SECONDS = 15.0
"""Longest time without a line."""


@dataclass
class _Silence:
    """Of this process."""

    last_line: float = -math.inf
    """When a line was printed of which this module knows, by `time.monotonic`."""
    is_whole: bool = False
    """Whether it counts from the last line on, whatever was waited for since."""


_silence = _Silence()


def count_silence() -> None:
    """Let silence count from here, and from any line, on: of a command, whose parts follow each other. Otherwise it
    counts from the beginning of a `Waiting`: what a notebook did before is not silence."""
    _silence.last_line, _silence.is_whole = time.monotonic(), True


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, by default to stdout, after which any `Waiting` is silent for a while."""
    _silence.last_line = time.monotonic()
    print(text, file=stream or sys.stdout, flush=True)


class Waiting:
    """Says what is waited for, with the time that has passed, when there has been no line for `seconds`.

    Args:
        prefix: of every line, such as the name of a run.
        seconds: longest time without a line.
        stream: where lines go; by default stdout.
    """

    def __init__(self, prefix: str, *, seconds: float = SILENT_SECONDS, stream: TextIO | None = None) -> None:
        self._prefix, self._seconds, self._stream = prefix, seconds, stream
        self._changed = threading.Condition()
        self._what: Callable[[], str] | None = None
        self._began = time.monotonic()
        self._entered = -math.inf
        self._is_closed = False
        self._thread = threading.Thread(target=self._repeat, daemon=True, name="waiting")

    def __enter__(self) -> Self:
        self._entered = -math.inf if _silence.is_whole else time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def begin(self, what: str | Callable[[], str], *, is_told: bool = True) -> None:
        """Wait for something else.

        Args:
            what: is printed; a function is asked anew for every line.
            is_told: whether a line is printed at once, or only after a silence.
        """
        asked = (lambda: what) if isinstance(what, str) else what
        with self._changed:
            was_idle = self._what is None
            self._what, self._began = asked, time.monotonic()
            # Otherwise the thread looks again by itself, before a line is due: training begins anew twice a step.
            if was_idle:
                self._changed.notify()
        if is_told:
            say(f"{self._prefix}: {asked()}", self._stream)

    def end(self) -> None:
        """Wait for nothing."""
        with self._changed:
            self._what = None
            self._changed.notify()

    def _repeat(self) -> None:
        while True:
            with self._changed:
                if self._is_closed:
                    return
                now = time.monotonic()
                # What has just begun has lasted no time yet.
                due = max(max(_silence.last_line, self._entered) + self._seconds, self._began + self._seconds / 15)
                left = due - now
                if self._what is None or left > 0:
                    self._changed.wait(None if self._what is None else left)
                    continue
                what, waited = self._what, now - self._began
            # Outside the lock: a function may take its time.
            say(f"{self._prefix}: {what()}, for {duration(waited)} so far", self._stream)
