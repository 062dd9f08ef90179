"""How many calls of the network a visitor still has to wait for."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Protocol


class Counted(Protocol):
    """A visit whose gradients are counted."""

    @property
    def num_gradients(self) -> int:
        """In all."""
        ...

    @property
    def num_answered(self) -> int:
        """So far."""
        ...


def calls_until(
    visit: Counted, guests: Sequence[tuple[Counted, int]], waiting: Sequence[tuple[Counted, int]], max_batch: int
) -> tuple[int, int]:
    """Visits that wait for room before this one does, and calls of the network until its image.

    Those who wait come in by their order, each as soon as there is room for the energies that it asks for.

    Args:
        visit: one of the guests or of those who wait; any other is taken to be over.
        guests: visits in the batch, with the images that each gives the network.
        waiting: those who wait, in their order, with the same.
        max_batch: images that the network is given at once.
    """
    if any(guest is visit for guest, _ in guests):
        return 0, max(0, visit.num_gradients - visit.num_answered)
    leaving = [(max(0, guest.num_gradients - guest.num_answered), size) for guest, size in guests]
    heapq.heapify(leaving)
    now, ahead, taken = 0, 0, sum(size for _, size in guests)
    for other, size in waiting:
        while leaving and taken + size > max_batch:
            now, freed = heapq.heappop(leaving)
            taken -= freed
        if other is visit:
            return ahead, now + visit.num_gradients
        # Those for whom there is room come in with the next call.
        ahead += now > 0
        taken += size
        heapq.heappush(leaving, (now + other.num_gradients, size))
    return 0, 0
