"""Numbers that jobs export through Ray's metrics, which Prometheus scrapes from every node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from ray.util.metrics import Counter, Gauge

from drl_dist.common.program import Stopped
from drl_dist.tracking.metrics import METRICS

EXPORTED = {f"drl_{metric.name}": metric.description for metric in METRICS if metric.exported}
"""Name and meaning; Ray puts `ray_` before the name. All have the tag `run`; all are gauges but `COUNTED`."""
COUNTED = frozenset(f"drl_{metric.name}" for metric in METRICS if metric.exported == "counter")
"""Counters, after whose name Ray puts `_total`. They stay when their process has ended; gauges go after 20 s."""
_GAUGES = EXPORTED.keys() - COUNTED
EXPORT_SECONDS = 5.0
"""Ray drops a gauge that was not set for two of its export intervals, 20 s by default."""


class Exporter:
    """Exports the numbers of one run or job from this process, by the clock, until it is closed.

    A number that was set once is exported every few seconds, so that it stays while a step takes minutes or hangs.

    Args:
        run: value of the tag `run`: the run's name, or the URL of the samples.
        seconds: between exports.
    """

    def __init__(self, run: str, *, seconds: float = EXPORT_SECONDS) -> None:
        self._run, self._seconds = run, seconds
        self._look: Callable[[], Mapping[str, float]] = dict
        self._values: Mapping[str, float] = {}
        self._gauges: dict[str, Gauge] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._export_until_closed, daemon=True, name="exporter")
        self._thread.start()

    def set(self, **values: float) -> None:
        """Export gauges by their names in `EXPORTED`, without `drl_`, from now on; returns at once."""
        for name in values:
            _check_name(name, _GAUGES)
        self._values = {**self._values, **values}

    def ask(self, look: Callable[[], Mapping[str, float]]) -> None:
        """Export from now on what `look` gives too, by the same names; a thread asks it, and it must not wait."""
        self._look = look

    def count(self, name: str) -> None:
        """Add one to a counter of `COUNTED`, named without `drl_`."""
        full = _check_name(name, COUNTED)
        Counter(full, EXPORTED[full], tag_keys=("run",)).inc(1, tags={"run": self._run})

    def close(self) -> None:
        """Export what was last set, and no more."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            self._export()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _export_until_closed(self) -> None:
        while not self._closed.is_set():
            self._export()
            self._closed.wait(self._seconds)

    def _export(self) -> None:
        for name, value in {**self._values, **self._look()}.items():
            full = _check_name(name, _GAUGES)
            if full not in self._gauges:
                self._gauges[full] = Gauge(full, EXPORTED[full], tag_keys=("run",))
            self._gauges[full].set(value, tags={"run": self._run})


@contextmanager
def job_exported(run: str) -> Iterator[Exporter]:
    """Export that a job is meant to run, until it ends.

    If it ends otherwise than by making all it should or by being asked to stop, or its process is killed, that it has
    ended is not exported, by which Prometheus sees that it is gone.
    """
    with Exporter(run) as exporter:
        exporter.set(started_timestamp_seconds=time.time())
        try:
            yield exporter
        except (Stopped, KeyboardInterrupt):
            exporter.count("ended")
            raise
        exporter.count("ended")


def _check_name(name: str, known: Collection[str]) -> str:
    full = f"drl_{name}"
    if full not in known:
        raise ValueError(f"{name} is not exported")
    return full
