"""The parts of a run in order of worth, and the time that each may take; needs no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a run."""

    title: str
    """Its heading in the report."""
    weight: float
    """Its share of the time left when it begins, among the parts that are still to come."""


PARTS: dict[str, Part] = {
    "machine": Part(title="Machine", weight=0.2),
    "equality": Part(title="Agreement with float64 on the CPU", weight=2.0),
    "throughput": Part(title="Rates", weight=4.5),
    "memory": Part(title="Memory", weight=1.0),
    "gaps": Part(title="Launch gaps", weight=0.8),
    "pipeline": Part(title="Data pipeline", weight=0.9),
    "training": Part(title="Training", weight=3.0),
}
"""By name, which is that of the module that does the work: `benchmarks.accelerator.NAME`."""
UNUSABLE = 4
"""Exit status of a process that cannot use the device any more, in the middle of a part that is worth going on with."""
GRACE_SECONDS = 20.0
"""After the end of its time a part may finish what it has begun; then its process is ended."""


@dataclass(frozen=True)
class Clock:
    """The time of something, as `time.monotonic`, which all processes of a machine share."""

    until: float
    """When it is over."""

    def left(self) -> float:
        """Seconds left; none after the end."""
        return max(0.0, self.until - time.monotonic())

    def allows(self, seconds: float) -> bool:
        """Whether work of so many seconds ends in time."""
        return seconds < self.left()

    def share(self, name: str, remaining: list[str]) -> Clock:
        """The clock of a part, of those that remain, itself among them."""
        part = PARTS[name].weight / sum(PARTS[other].weight for other in remaining)
        return Clock(time.monotonic() + self.left() * part)
