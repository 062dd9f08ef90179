"""``--checkpoint.every-steps auto``: what the first rank measures, decides and says."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Protocol, cast

import pytest

from drl_dist.checkpoints.goodput import CheckpointCost, best_every_steps
from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.config.rules import check_run
from drl_dist.config.tree import CheckpointConfig, RunConfig, TrackingConfig
from drl_dist.jobs.train import interval as module
from drl_dist.jobs.train.interval import FIRST_SECONDS, AutoInterval
from drl_dist.training.guard import Interrupt
from drl_dist.training.loop import StepReport

PICTURES = 100
STEP, WAIT, UPLOAD = 0.5, 2.0, 6.0
"""Seconds of a step, of training that waits for a checkpoint, and until that is in storage."""


@dataclass
class Run:
    """Steps as a worker makes them, on a clock of their own."""

    hours: float = 24.0
    machines: int = 2
    now: float = 100.0
    asked: Interrupt = Interrupt.NONE
    pictures: int = PICTURES
    wait: float = WAIT
    checkpoints: list[int] = field(default_factory=list[int])
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list[tuple[int, dict[str, float]]])

    def __post_init__(self) -> None:
        self.interval = AutoInterval(
            CheckpointConfig(every_steps="auto", machine_lifetime_hours=self.hours),
            TrackingConfig(sample_every_steps=self.pictures),
            self.machines,
            lambda: self.asked,
            lambda step, numbers: self.logged.append((step, numbers)),
        )
        self._began, self._stored_at = self.now, float("inf")

    def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.now += STEP
            request = self.interval()
            self.asked = Interrupt.NONE
            report = made_report(step=step, seconds=self.now - self._began, interrupt=request)
            self._began = self.now
            if (now := self.now) >= self._stored_at:
                self.now, self._stored_at = self._stored_at, float("inf")
                self.interval.stored()
                self.now = now
            self.interval.on_step(report, cast(Any, None))
            if report.wants_checkpoint("auto"):
                self.checkpoints.append(step)
                self.now += self.wait
                self._stored_at = self._began + UPLOAD
            if step % self.pictures == 0:
                # Pictures, which are no part of a step and no price of a checkpoint.
                self.now += 40.0


def made_report(*, step: int, seconds: float, interrupt: Interrupt) -> StepReport:
    return StepReport(
        step=step,
        num_steps=10**9,
        result=cast(Any, SimpleNamespace(interrupt=interrupt)),
        wait_seconds=0.0,
        seconds=seconds,
        images_seen=step,
        images_per_second=1.0,
        chain_steps_per_second=1.0,
    )


class MakeRun(Protocol):
    def __call__(self, *, hours: float = 24.0, machines: int = 2, pictures: int = PICTURES) -> Run: ...


@pytest.fixture
def make_run(monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    def make(*, hours: float = 24.0, machines: int = 2, pictures: int = PICTURES) -> Run:
        runs: list[Run] = []
        monkeypatch.setattr(module.time, "monotonic", lambda: runs[0].now if runs else 100.0)
        runs.append(Run(hours, machines, pictures=pictures))
        return runs[0]

    return make


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    return make_run()


def test_the_interval_is_that_of_what_was_measured(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.train(1, 4000)
    cost = CheckpointCost(price_seconds=WAIT, upload_seconds=UPLOAD)
    expected = best_every_steps(cost, 12 * 3600.0, STEP)
    assert run.interval.every == expected == 832
    # The first one comes early: nothing is known before it.
    first = run.checkpoints[0]
    assert FIRST_SECONDS <= first * STEP <= FIRST_SECONDS + STEP
    assert run.checkpoints == list(range(first, 4001, expected))
    assert [numbers for _, numbers in run.logged] == [{"checkpoint_every_steps": 832}]
    assert capsys.readouterr().out == (
        "checkpoints every 832 steps of 0.5 s: one costs 2 s of training and is in storage after 6 s, and one of "
        "2 machines is assumed to be lost every 12 h 00 min (checkpoint.machine_lifetime_hours)\n"
    )


def test_a_price_that_changes_changes_the_interval_and_little_does_not(run: Run) -> None:
    run.train(1, 2000)
    run.wait = 1.2 * WAIT
    run.train(2001, 30_000)
    assert run.interval.every == 832
    run.wait = 16 * WAIT
    run.train(30_001, 100_000)
    assert [numbers["checkpoint_every_steps"] for _, numbers in run.logged] == [832, 3326]


@pytest.mark.parametrize(
    ("wait", "gap"),
    [
        # Young's interval: sqrt(2 * 2 s * 60 s) = 15.5 s.
        (WAIT, 31),
        # Twice the 6 s that an upload takes.
        (0.0, 24),
    ],
)
def test_short_lives_have_checkpoints_often(make_run: MakeRun, wait: float, gap: int) -> None:
    run = make_run(hours=1 / 60, machines=1)
    run.wait = wait
    run.train(1, 300)
    # The first one comes after a tenth of the lifetime.
    assert run.checkpoints[0] <= 13
    assert {after - before for before, after in pairwise(run.checkpoints[1:])} == {gap}


def test_a_checkpoint_that_others_ask_for_counts(run: Run) -> None:
    run.train(1, 1000)
    last = run.checkpoints[-1]
    run.asked = Interrupt.CHECKPOINT
    run.train(1001, 1001 + 831)
    assert run.checkpoints[-1] == 1001 != last
    run.train(1001 + 832, 1001 + 832)
    assert run.checkpoints[-1] == 1001 + 832


def test_pictures_are_no_price_of_a_checkpoint(run: Run) -> None:
    run.train(1, PICTURES - 1)
    run.asked = Interrupt.CHECKPOINT
    run.train(PICTURES, 4 * PICTURES)
    assert PICTURES in run.checkpoints and len(run.checkpoints) == 2
    assert [numbers for _, numbers in run.logged] == [{"checkpoint_every_steps": 832}]


@pytest.mark.parametrize("pictures", [2, 5, 11])
def test_pictures_during_each_upload_do_not_keep_it_from_a_decision(make_run: MakeRun, pictures: int) -> None:
    run = make_run(pictures=pictures)
    run.train(1, 3000)
    assert run.interval.every == 832
    assert not [step for step in run.checkpoints if step % pictures == 0]
    assert all(832 <= after - before <= 833 for before, after in pairwise(run.checkpoints))


def test_pictures_after_every_step_are_part_of_it(make_run: MakeRun) -> None:
    run = make_run(pictures=1)
    run.train(1, 200)
    cost = CheckpointCost(price_seconds=WAIT, upload_seconds=40.5)
    assert run.interval.every == best_every_steps(cost, 43200.0, 40.5)


def test_a_checkpoint_during_the_upload_of_another_has_no_price(run: Run) -> None:
    run.train(1, 1000)
    prices, uploads = list(run.interval._prices), list(run.interval._uploads)
    for seconds in (0.0, 1.0):
        run.interval.on_step(made_report(step=1001, seconds=seconds, interrupt=Interrupt.CHECKPOINT), cast(Any, None))
    run.now += 3.0
    run.interval.stored()
    run.interval.on_step(made_report(step=1002, seconds=3.0, interrupt=Interrupt.NONE), cast(Any, None))
    # The second one is still on its way.
    assert run.interval() is Interrupt.NONE and run.interval._is_measuring
    run.now += 4.0
    run.interval.stored()
    run.interval.on_step(made_report(step=1003, seconds=4.0, interrupt=Interrupt.NONE), cast(Any, None))
    assert not run.interval._is_measuring and list(run.interval._prices) == prices
    assert list(run.interval._uploads) == [*uploads, 3.0, 7.0]


def test_what_others_ask_for_is_stronger(run: Run) -> None:
    run.asked = Interrupt.STOP
    assert run.interval() is Interrupt.STOP
    run.asked = Interrupt.NONE
    assert run.interval() is Interrupt.NONE


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (CheckpointConfig(every_steps="auto", keep=None), "checkpoint.keep"),
        (CheckpointConfig(every_steps="auto", machine_lifetime_hours=0.0), "checkpoint.machine_lifetime_hours"),
        # A mean of centuries, whose seconds no number holds.
        (CheckpointConfig(every_steps="auto", machine_lifetime_hours=1e306), "checkpoint.machine_lifetime_hours"),
        (CheckpointConfig(every_steps=0), "checkpoint.every_steps"),
    ],
)
def test_what_no_run_can_have_is_refused(config: CheckpointConfig, field: str) -> None:
    with pytest.raises(UserError, match=field):
        check_run(RunConfig(experiment=preset("digits"), checkpoint=config), complete=False)


def test_auto_can_be_had() -> None:
    check_run(RunConfig(experiment=preset("digits"), checkpoint=CheckpointConfig(every_steps="auto")), complete=False)
