"""What the engine's thread tells the event loop is taken in bundles, in order and without loss."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from drl_dist.jobs.serve import host
from drl_dist.jobs.serve.host import ModelHost
from drl_dist.jobs.serve.inbox import Inbox
from drl_dist.jobs.serve.web.backend import News, Outlook, Shown
from drl_dist.library.load import load
from drl_dist.serving.requests import SampleRequest
from tests.support import write_tiny_checkpoint

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


def test_a_model_s_levels_are_sent_together_where_they_come_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(write_tiny_checkpoint(tmp_path / "checkpoint", width=4, num_chain_steps=2))
    served = ModelHost(model, name="tiny", data=None, max_batch=2, max_waiting=2)
    # The next bundle only with the image.
    monkeypatch.setattr(host, "MAX_SENT_PER_SECOND", 1e-6)

    async def listen(*, has_film: bool) -> list[list[News]]:
        return [bundle async for bundle in served.bundles(SampleRequest(seed=1), has_film=has_film)]

    with served.running():
        outlook, *shown = asyncio.run(listen(has_film=True))
        alone = asyncio.run(listen(has_film=False))
    assert len(outlook) == 1 and len(shown) <= 2
    levels = [part.level for bundle in shown for part in bundle if isinstance(part, Shown)]
    assert levels == list(range(model.num_levels, -1, -1))
    assert [[type(part) for part in bundle] for bundle in alone] == [[Outlook], [Shown]] and alone[1] == shown[-1][-1:]
