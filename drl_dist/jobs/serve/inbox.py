"""What one thread tells the event loop of another, taken in bundles."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

Part = TypeVar("Part")


class Inbox(Generic[Part]):
    """Holds what is told until the loop takes it. Made in the loop; `put` may be called in any thread.

    A wake-up of the loop, and each thing that it sends on, cost about as much as the gradient of a small image. So what
    comes within a moment is taken together, but for the first part, and without waiting once the last is there.

    Args:
        is_last: whether nothing comes after a part.
        moment: seconds until the next bundle, at least; it is asked whenever one is taken.
    """

    def __init__(self, is_last: Callable[[Part], bool], moment: Callable[[], float]) -> None:
        self._is_last, self._moment = is_last, moment
        self._loop = asyncio.get_running_loop()
        self._parts: deque[Part] = deque()
        self._some, self._all = asyncio.Event(), asyncio.Event()
        self._is_told = False
        self._not_before = 0.0

    def put(self, part: Part) -> None:
        """Hand over a part."""
        self._parts.append(part)
        # The loop is closed where the process ends.
        with suppress(RuntimeError):
            if self._is_last(part):
                self._loop.call_soon_threadsafe(self._all.set)
            if not self._is_told:
                self._is_told = True
                self._loop.call_soon_threadsafe(self._some.set)

    async def bundle(self, seconds: float) -> list[Part]:
        """The parts that are there, in their order, as soon as there are any; none if none came within the time."""
        try:
            await asyncio.wait_for(self._some.wait(), seconds)
        except TimeoutError:
            return []
        with suppress(TimeoutError):
            await asyncio.wait_for(self._all.wait(), max(0.0, self._not_before - self._loop.time()))
        self._some.clear()
        # Before they are taken: a part that comes now wakes the loop again.
        self._is_told = False
        taken = [self._parts.popleft() for _ in range(len(self._parts))]
        self._not_before = self._loop.time() + self._moment()
        return taken
