"""What the engine's thread tells the event loop is taken in bundles, in order and without loss."""

from __future__ import annotations

import asyncio
import threading
import time

from drl_dist.jobs.serve.inbox import Inbox

LONG = 60.0


def is_last(part: int) -> bool:
    return part == 0


def test_the_first_comes_at_once_and_the_others_together() -> None:
    async def listen() -> list[list[int]]:
        inbox = Inbox(is_last, lambda: 0.3)
        inbox.put(5)
        first = await inbox.bundle(LONG)
        for part in (4, 3):
            inbox.put(part)
        began = time.monotonic()
        second = await inbox.bundle(LONG)
        assert time.monotonic() - began > 0.1
        return [first, second]

    assert asyncio.run(listen()) == [[5], [4, 3]]


def test_the_last_is_not_waited_with() -> None:
    async def listen() -> list[int]:
        inbox = Inbox(is_last, lambda: LONG)
        inbox.put(3)
        await inbox.bundle(LONG)
        for part in (2, 1):
            inbox.put(part)
        asyncio.get_running_loop().call_later(0.05, inbox.put, 0)
        return await asyncio.wait_for(inbox.bundle(LONG), LONG / 2)

    assert asyncio.run(listen()) == [2, 1, 0]


def test_silence_has_an_end() -> None:
    async def listen() -> list[int]:
        return await Inbox(is_last, lambda: 0.0).bundle(0.01)

    assert asyncio.run(listen()) == []


def test_nothing_is_lost_between_threads() -> None:
    async def listen() -> list[int]:
        inbox, heard = Inbox(is_last, lambda: 0.0), list[int]()
        teller = threading.Thread(target=lambda: [inbox.put(part) for part in range(5000, -1, -1)])
        teller.start()
        while not heard or heard[-1] != 0:
            heard += await asyncio.wait_for(inbox.bundle(LONG), LONG)
        teller.join()
        return heard

    assert asyncio.run(listen()) == list(range(5000, -1, -1))


def test_a_part_after_the_loop_s_end_is_forgotten() -> None:
    async def made() -> Inbox[int]:
        return Inbox(is_last, lambda: 0.0)

    asyncio.run(made()).put(1)
