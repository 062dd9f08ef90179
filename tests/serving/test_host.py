"""What a replica does for visitors who have left, and for pictures that wait to be scored."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import drl_dist
from drl_dist.jobs.serve.host import ModelHost
from drl_dist.jobs.serve.web.backend import News
from drl_dist.serving.engine import Busy
from drl_dist.serving.requests import SampleRequest
from tests.support import wait_for, write_tiny_checkpoint

PICTURE = torch.zeros(1, 8, 8, dtype=torch.uint8)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelHost]:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("model") / "c"
    model = drl_dist.load(write_tiny_checkpoint(folder, width=4, num_chain_steps=2))
    host = ModelHost(model, name="tiny", data=None, max_batch=4, max_waiting=3)
    with host.running():
        yield host


class Slow:
    """A function that waits until it may go on."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, *words: Any, **more: Any) -> Any:
        self.begun.set()
        assert self.may_go_on.wait(60)
        return self._function(*words, **more)


async def all_news(host: ModelHost, request: SampleRequest) -> list[News]:
    return [part async for part in host.visit(request, has_film=True)]


def test_who_leaves_before_the_request_is_taken_is_forgotten(host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(host.engine.submit)
    monkeypatch.setattr(host.engine, "submit", slow)

    async def leave() -> None:
        visitor = asyncio.create_task(all_news(host, SampleRequest(num_chain_steps=1000)))
        await asyncio.to_thread(slow.begun.wait, 60)
        visitor.cancel()
        await asyncio.gather(visitor, return_exceptions=True)
        slow.may_go_on.set()
        # The chain alone would take many times as long.
        deadline = time.monotonic() + 30
        calls = host.engine.num_calls
        await asyncio.sleep(0.05)
        while host.engine.num_active or host.engine.num_waiting:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert host.engine.num_calls < calls + 3000

    asyncio.run(leave())


def test_pictures_that_are_scored_hold_no_chain_up(host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(host._scorer.scores)
    monkeypatch.setattr(host._scorer, "scores", slow)

    async def play() -> None:
        scores = [asyncio.create_task(host.scores(PICTURE, 0, None)) for _ in range(4)]
        await asyncio.to_thread(slow.begun.wait, 60)
        assert await all_news(host, SampleRequest())
        with pytest.raises(Busy, match="got 4 pictures that wait to be scored, expected at most 3"):
            await host.scores(PICTURE, 0, None)
        slow.may_go_on.set()
        assert len(await asyncio.gather(*scores)) == 4
        assert await host.scores(PICTURE, 0, None)

    asyncio.run(play())
    wait_for(lambda: not host.engine.num_active, 30)
