"""The least time that operations can take on a machine of which two numbers are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What a GPU is sold by."""

    flop_per_second: float
    bytes_per_second: float
    """Of its memory."""


@dataclass(frozen=True)
class Bound:
    """Work that takes no less than this."""

    seconds: float
    flop: int

    def share(self, machine: Machine) -> float:
        """FLOP per second over the machine's."""
        return self.flop / self.seconds / machine.flop_per_second

    def shown(self, machine: Machine) -> str:
        """Time and share for a table."""
        return f"{1e3 * self.seconds:.3g} ms, {100 * self.share(machine):.0f} %"


def bound(parts: Iterable[tuple[int, int]], machine: Machine) -> Bound:
    """The least time of parts that run one after the other, of which each reads and writes the machine's memory.

    What stays in a cache from one part to the next is not read again, so work of few megabytes can be faster.

    Args:
        parts: FLOP and bytes of each.
        machine: that they run on.
    """
    parts = list(parts)
    seconds = sum(max(flop / machine.flop_per_second, size / machine.bytes_per_second) for flop, size in parts)
    return Bound(seconds, sum(flop for flop, _ in parts))
