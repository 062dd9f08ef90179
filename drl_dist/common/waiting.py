"""Lines that say what a command waits for while nothing else is printed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from drl_dist.common.durations import duration

SILENT_SECONDS = 15.0
"""Longest time without a line."""


class Waiting:
    """Says what is waited for: at once, and again, with the time that has passed, at least every `seconds`.

    Args:
        prefix: of every line, such as the name of a run.
        seconds: longest time without a line.
        stream: where lines go; by default stdout.
    """

    def __init__(self, prefix: str, *, seconds: float = SILENT_SECONDS, stream: TextIO | None = None) -> None:
        self._prefix, self._seconds, self._stream = prefix, seconds, stream
        self._changed = threading.Condition()
        self._what: Callable[[], str] | None = None
        self._began = self._told = time.monotonic()
        self._is_closed = False
        self._thread = threading.Thread(target=self._repeat, daemon=True, name="waiting")

    def __enter__(self) -> Self:
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
            is_told: whether a line is printed at once, or only where this takes long.
        """
        asked = (lambda: what) if isinstance(what, str) else what
        with self._changed:
            was_idle = self._what is None
            self._what, self._began = asked, time.monotonic()
            self._told = self._began
            # Otherwise the thread looks again by itself, before a line is due: training begins anew twice a step.
            if was_idle:
                self._changed.notify()
        if is_told:
            self._print(asked())

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
                left = self._told + self._seconds - now
                if self._what is None or left > 0:
                    self._changed.wait(None if self._what is None else left)
                    continue
                what, waited, self._told = self._what, now - self._began, now
            # Outside the lock: a function may take its time.
            self._print(f"{what()}, for {duration(waited)} so far")

    def _print(self, text: str) -> None:
        print(f"{self._prefix}: {text}", file=self._stream or sys.stdout, flush=True)
