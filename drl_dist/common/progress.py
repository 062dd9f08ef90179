"""Progress of long work on stderr: items done, rate and remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from drl_dist.common.durations import duration
from drl_dist.common.waiting import Waiting, say

LINE_SECONDS = 10.0
"""Least seconds between lines when the output is not a terminal."""


@dataclass(frozen=True)
class UnderWay:
    """How far a task is with its next items.

    Args:
        items: what their work so far amounts to, in items.
        what: is being done, e.g. ``"noise level 2 of 6"``.
    """

    items: float
    what: str


class Advance(Protocol):
    """Report how many more items are done, with an optional note to show beside them.

    0 only refreshes the display; a negative number reports lost work.

    Args:
        items: how many more.
        note: shown beside them.
        under_way: what the work on unfinished items amounts to, in items; it counts for the rate and the time left.
        is_starting: nothing is worked on yet: the time so far does not count for the rate.
    """

    def __call__(self, items: int, note: str = "", *, under_way: float = 0.0, is_starting: bool = False) -> None: ...


class _Count:
    """How far the work is, and how fast."""

    def __init__(self, total: int, done: int, unit: str) -> None:
        self._total, self._before, self._unit = total, done, unit
        self._began, self._count, self._under_way = time.monotonic(), 0, 0.0

    @property
    def done(self) -> int:
        """Finished items."""
        return self._before + self._count

    @property
    def is_complete(self) -> bool:
        """Whether none is left."""
        return self.done >= self._total

    def advance(self, items: int, under_way: float, is_starting: bool) -> None:
        self._count, self._under_way = self._count + items, under_way
        if is_starting and not self._made:
            self._began = time.monotonic()

    @property
    def _made(self) -> float:
        return self._count + self._under_way

    def pace(self) -> tuple[str, str]:
        """The rate and the remaining time; both empty before anything is known."""
        if self._made <= 0:
            return "", ""
        rate = self._made / max(time.monotonic() - self._began, 1e-9)
        shown = f"{rate:.0f} {self._unit}/s" if rate >= 10 else f"{rate:.2g} {self._unit}/s"
        left = max(0.0, self._total - self._before - self._made)
        return shown, "" if self.is_complete else f"{duration(left / rate)} left"


@contextmanager
def progress(what: str, total: int, done: int, unit: str) -> Generator[Advance]:
    """Show progress on stderr: a bar in a terminal (where rich is installed), elsewhere lines.

    A line appears every few seconds where there is something new to say, otherwise after `waiting.SILENT_SECONDS`.

    Args:
        what: description of the work.
        total: number of all items.
        done: items that were done before, which do not count for the rate.
        unit: name of the items, in the plural.
    """
    count = _Count(total, done, unit)
    if sys.stderr.isatty() and find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total, completed=done, rate="", left="", note="")

            def advance(items: int, note: str = "", *, under_way: float = 0.0, is_starting: bool = False) -> None:
                count.advance(items, under_way, is_starting)
                rate, left = count.pace()
                bar.update(task, advance=items, rate=rate, left=left, note=note)

            yield advance
        return

    with Waiting(what, stream=sys.stderr) as waiting:
        printed, shown, note_now = time.monotonic(), (done, ""), ""

        def state() -> str:
            parts = [part for part in (*count.pace(), note_now) if part]
            return ", ".join([f"{count.done}/{total} {unit}", *parts])

        def advance_in_lines(items: int, note: str = "", *, under_way: float = 0.0, is_starting: bool = False) -> None:
            nonlocal printed, shown, note_now
            count.advance(items, under_way, is_starting)
            note_now = note
            now, news = time.monotonic(), (count.done, note)
            if news != shown and (now - printed >= LINE_SECONDS or (items and count.is_complete)):
                printed, shown = now, news
                say(f"{what}: {state()}", sys.stderr)
                waiting.begin(state, is_told=False)

        waiting.begin(state, is_told=False)
        yield advance_in_lines
