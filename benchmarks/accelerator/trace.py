"""Reading the kernels out of a trace of torch's profiler; needs no torch."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of what the GPU itself does."""


@dataclass(frozen=True)
class Kernel:
    """Work of the GPU; times in microseconds."""

    name: str
    start: float
    duration: float


def read_trace(path: Path) -> dict[str, Any]:
    """A trace as `torch.profiler.profile.export_chrome_trace` writes it, compressed or not."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return json.load(file)


def kernels_of(trace: dict[str, Any]) -> list[Kernel]:
    """What the GPU did, in order of its beginning."""
    found = [
        Kernel(event["name"], float(event["ts"]), float(event.get("dur", 0)))
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in _ON_DEVICE
    ]
    return sorted(found, key=lambda kernel: kernel.start)


def idle_share(kernels: Sequence[Kernel]) -> float:
    """Share of the time from the first kernel's start to the last one's end in which none runs."""
    end = max(kernel.start + kernel.duration for kernel in kernels)
    return sum(_gaps(kernels)) / max(end - kernels[0].start, 1e-9)


def largest_gap(kernels: Sequence[Kernel]) -> float:
    """Longest time without a kernel between the first and the last one."""
    return max(_gaps(kernels), default=0.0)


def busiest(kernels: Sequence[Kernel], count: int) -> list[tuple[str, float, int]]:
    """Names of the kernels that take most, the time of all runs of each, and how many these are."""
    runs: dict[str, list[float]] = {}
    for kernel in kernels:
        runs.setdefault(kernel.name, []).append(kernel.duration)
    totals = [(name, sum(durations), len(durations)) for name, durations in runs.items()]
    return sorted(totals, key=lambda total: -total[1])[:count]


def _gaps(kernels: Sequence[Kernel]) -> Iterator[float]:
    # Kernels of several streams overlap.
    end = kernels[0].start
    for kernel in kernels:
        if kernel.start > end:
            yield kernel.start - end
        end = max(end, kernel.start + kernel.duration)
