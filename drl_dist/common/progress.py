"""Progress of long work on stderr: items done, rate and remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol

from drl_dist.common.durations import duration

LINE_SECONDS = 5.0
"""Seconds between lines when the output is not a terminal."""


class Advance(Protocol):
    """Report how many more items are done, with an optional note to show beside them.

    0 only refreshes the display; a negative number reports lost work.
    """

    def __call__(self, items: int, note: str = "") -> None: ...


@contextmanager
def progress(what: str, total: int, done: int, unit: str) -> Generator[Advance]:
    """Show progress on stderr: a bar in a terminal (where rich is installed), elsewhere a line every few seconds.

    Args:
        what: description of the work.
        total: number of all items.
        done: items that were done before, which do not count for the rate.
        unit: name of the items, in the plural.
    """
    began, count, last = time.monotonic(), 0, time.monotonic()

    def rate() -> float:
        return count / max(time.monotonic() - began, 1e-9)

    def rate_text() -> str:
        return f"{rate():.0f} {unit}/s" if rate() >= 10 else f"{rate():.2g} {unit}/s"

    if sys.stderr.isatty() and find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total, completed=done, rate="", note="")

            def advance(items: int, note: str = "") -> None:
                nonlocal count
                count += items
                bar.update(task, advance=items, rate=rate_text(), note=note)

            yield advance
        return

    def advance_in_lines(items: int, note: str = "") -> None:
        nonlocal count, last
        count += items
        now, left = time.monotonic(), total - done - count
        if now - last >= LINE_SECONDS or (items and left <= 0):
            last = now
            remaining = f"{duration(left / rate())} left" if count > 0 else "time left not known yet"
            print(
                f"{what}: {done + count}/{total} {unit}, {rate_text()}, {remaining}" + (f", {note}" if note else ""),
                file=sys.stderr,
                flush=True,
            )

    yield advance_in_lines
