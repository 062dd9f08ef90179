"""Lines of progress: what is done, how fast, what is under way, and nothing twice."""

from __future__ import annotations

import re
import time
from functools import partial

import pytest

from drl_dist.common import progress as module
from drl_dist.common.progress import progress
from drl_dist.common.waiting import Waiting
from tests.support import wait_for


def test_nothing_is_said_twice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    with progress("sampling", 64, 0, "images") as advance:
        for _ in range(20):
            advance(0, "1 worker to start", is_starting=True)
        assert capsys.readouterr().err == "sampling: 0/64 images, 1 worker to start\n"
        for _ in range(20):
            advance(0, "workers: 1 busy")
        assert capsys.readouterr().err == "sampling: 0/64 images, workers: 1 busy\n"
        advance(63)
        assert re.fullmatch(r"sampling: 63/64 images, \d+ images/s, 0 s left\n", capsys.readouterr().err)
        advance(1)
        assert re.fullmatch(r"sampling: 64/64 images, \d+ images/s\n", capsys.readouterr().err)
    assert capsys.readouterr().err == ""


def test_work_under_way_counts_for_the_rate_and_starting_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    monkeypatch.setattr(module, "Waiting", partial(Waiting, seconds=1e9))
    with progress("sampling", 80, 30, "images") as advance:
        now = 100.0
        advance(0, "starting", is_starting=True)
        now = 120.0
        # A fifth of a batch of 50 in 20 s.
        advance(0, "level 4 of 5", under_way=10.0)
        now = 200.0
        advance(50)
    assert capsys.readouterr().err.splitlines() == [
        "sampling: 30/80 images, starting",
        "sampling: 30/80 images, 0.5 images/s, 80 s left, level 4 of 5",
        "sampling: 80/80 images, 0.5 images/s",
    ]


def test_long_parts_are_not_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "Waiting", partial(Waiting, seconds=0.2))
    err = ""

    def said(text: str) -> bool:
        nonlocal err
        err += capsys.readouterr().err
        return text in err

    with progress("features", 10, 0, "images") as advance:
        wait_for(lambda: said("features: 0/10 images, for 0 s so far\n"), 10)
        advance(4, "slowly")
        wait_for(lambda: said(" left, slowly, for "), 10)
    said("")
    time.sleep(0.3)
    assert capsys.readouterr().err == ""
