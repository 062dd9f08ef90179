"""What a command says while it waits."""

from __future__ import annotations

import io
import re
import time
from functools import partial

import pytest

from drl_dist.common import waiting as module
from drl_dist.common.amounts import counted, mebibytes, short
from drl_dist.common.waiting import Waiting, count_silence, say
from drl_dist.jobs.train import start_up
from drl_dist.jobs.train.faults.restarts import RestartPolicy
from tests.support import wait_for


def test_a_line_at_once_and_again_while_nothing_else_is_said() -> None:
    stream = io.StringIO()
    with Waiting("run a", seconds=0.1, stream=stream) as waiting:
        assert stream.getvalue() == ""
        waiting.begin("waiting for 2 CPUs")
        assert stream.getvalue() == "run a: waiting for 2 CPUs\n"
        wait_for(lambda: stream.getvalue().count("\n") >= 3, 10)
        first, *more = stream.getvalue().splitlines()
        assert all(re.fullmatch(r"run a: waiting for 2 CPUs, for \d+ s so far", line) for line in more) and first
        waiting.end()
        time.sleep(0.1)
        told = stream.getvalue()
        time.sleep(0.3)
        assert stream.getvalue() == told
    assert stream.getvalue() == told


def test_what_goes_on_in_time_is_not_told() -> None:
    stream, states = io.StringIO(), iter(["1 of 2 CPUs is free", "2 of 2 CPUs are free"])
    with Waiting("run a", seconds=0.4, stream=stream) as waiting:
        for _ in range(8):
            waiting.begin("step", is_told=False)
            say("a line of another kind", io.StringIO())
            time.sleep(0.1)
        assert stream.getvalue() == ""
        waiting.begin(lambda: next(states))
        wait_for(lambda: "2 of 2 CPUs are free, for" in stream.getvalue(), 10)
        assert stream.getvalue().startswith("run a: 1 of 2 CPUs is free\n")


def test_short_parts_after_one_another_are_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_silence", module._Silence())
    stream = io.StringIO()
    with Waiting("run a", seconds=0.5, stream=stream) as waiting:
        for number in range(9):
            waiting.begin(f"part {number}", is_told=False)
            time.sleep(0.1)
    assert re.fullmatch(r"run a: part [4-6], for 0 s so far\n", stream.getvalue())
    # What was before in a notebook is not silence; between the parts of a command it is.
    for is_command in (False, True):
        stream.truncate(0)
        if is_command:
            count_silence()
        time.sleep(0.4)
        with Waiting("run a", seconds=0.5, stream=stream) as waiting:
            waiting.begin("another", is_told=False)
            time.sleep(0.3)
        assert ("run a: another" in stream.getvalue()) is is_command


class Key:
    """In the place of `KeyInStore`."""

    def __init__(self) -> None:
        self.is_set = False

    def write(self) -> None:
        self.is_set = True

    def is_there(self) -> bool:
        return self.is_set

    def remove(self) -> None:
        self.is_set = False


def test_restarted_workers_are_waited_for_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start_up, "Waiting", partial(Waiting, seconds=0.15))
    monkeypatch.setattr(start_up, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(start_up, "_RARE_LOOK_SECONDS", 0.02)
    said: list[str] = []

    def lines() -> list[str]:
        said.extend(capsys.readouterr().out.splitlines())
        return said

    arrival, restart = Key(), Key()
    with start_up.told_until(arrival, "run a", "1 worker to start", again=restart):  # pyright: ignore[reportArgumentType]
        wait_for(lambda: len(lines()) >= 2, 10)
        assert said[:2] == ["run a: 1 worker to start", "run a: 1 worker to start, for 0 s so far"]
        for _ in range(2):
            arrival.write()
            wait_for(lambda: not arrival.is_there(), 10)
            lines()
            said.clear()
            time.sleep(0.4)
            assert lines() == []
            # As the controller does when a worker has died.
            RestartPolicy(restart).after_exception(None, {0: OSError("gone")})  # pyright: ignore[reportArgumentType]
            wait_for(lambda: len(lines()) >= 3, 10)
            assert said[0].startswith("worker 0 failed (OSError: gone)")
            assert said[1:3] == ["run a: 1 worker to start", "run a: 1 worker to start, for 0 s so far"]


def test_counts_and_amounts() -> None:
    assert [counted(count, "worker") for count in (0, 1, 2)] == ["0 workers", "1 worker", "2 workers"]
    assert counted(1, "branch", "branches") == "1 branch" and counted(3, "branch", "branches") == "3 branches"
    assert [short(12), short(1.5e12, "FLOP"), short(34_833_408)] == ["12", "1.5 TFLOP", "34.8 M"]
    assert short(999_600) == "1 M" and short(0, "FLOP") == "0 FLOP"
    assert [mebibytes(1), mebibytes(5 * 2**20), mebibytes(11.5 * 2**30)] == ["1 MiB", "5 MiB", "11.5 GiB"]
