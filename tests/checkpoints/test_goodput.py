"""The model of goodput: against a simulation of runs that are interrupted, and against what was measured."""

from __future__ import annotations

import math
import random
import re
from itertools import pairwise

import pytest

from drl_dist.checkpoints.goodput import (
    UPLOADS_APART,
    CheckpointCost,
    best_every_steps,
    best_interval,
    between_interruptions,
    goodput,
    goodput_between_regular,
)
from tests.support import ROOT


def simulated(interval: float, cost: CheckpointCost, recovery: float, interruptions: list[float]) -> float:
    """Share of the time until the last interruption that went into work that stayed, step by step of a checkpoint.

    Args:
        interruptions: moments, in seconds.
    """
    kept, clock = 0.0, 0.0
    for moment in interruptions:
        # Of snapshots at the ends of periods, those that were in storage by then.
        period = interval + cost.price_seconds
        worked = moment - clock
        complete = max(0, math.floor((worked - cost.upload_seconds) / period))
        kept += complete * interval if worked > 0 else 0.0
        # Interrupted while it recovers, it begins to recover again.
        clock = moment + recovery
    return kept / interruptions[-1]


def poisson(mean: float, count: int, seed: int) -> list[float]:
    chooser, moments, now = random.Random(seed), list[float](), 0.0
    for _ in range(count):
        now += chooser.expovariate(1 / mean)
        moments.append(now)
    return moments


@pytest.mark.parametrize(
    ("interval", "price", "upload", "recovery", "between"),
    [
        (600.0, 5.0, 20.0, 120.0, 20_000.0),
        (100.0, 1.0, 5.0, 30.0, 1000.0),
        (27.0, 0.0, 1.0, 16.3, 67.6),
        (900.0, 60.0, 0.0, 300.0, 3600.0),
    ],
)
def test_random_interruptions_cost_what_the_formula_says(
    interval: float, price: float, upload: float, recovery: float, between: float
) -> None:
    cost = CheckpointCost(price_seconds=price, upload_seconds=upload)
    found = simulated(interval, cost, recovery, poisson(between, 200_000, seed=1))
    assert goodput(interval, cost, recovery, between) == pytest.approx(found, abs=0.006)


def test_regular_interruptions_cost_what_the_formula_says() -> None:
    cost = CheckpointCost(price_seconds=1.0, upload_seconds=2.0)
    # Regular but for half an interval on either side, so that they fall anywhere between two checkpoints.
    chooser, moments = random.Random(0), [0.0]
    while len(moments) < 100_000:
        moments.append(moments[-1] + 300.0 + chooser.uniform(-25.5, 25.5))
    found = simulated(50.0, cost, 10.0, moments[1:])
    assert goodput_between_regular(50.0, cost, 10.0, 300.0) == pytest.approx(found, abs=0.002)


def test_the_page_measured_what_the_model_says() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    measured = re.search(r"\((\d+) kills in (\d+) s, a checkpoint every (\d+) steps of ([\d.]+) s\) \| ([\d.]+)%", page)
    recovered = re.search(r"SIGKILL of a worker to the next training step \| p50 ([\d.]+) s", page)
    assert measured and recovered
    kills, seconds, every, step, share = map(float, measured.groups())
    expected = goodput_between_regular(
        every * step,
        # An upload of half a second, and as long until Ray's controller knows.
        CheckpointCost(price_seconds=0.0, upload_seconds=1.0),
        float(recovered[1]),
        seconds / kills,
    )
    assert expected == pytest.approx(share / 100, abs=0.06)


def test_the_best_interval_is_where_goodput_is_best() -> None:
    cost = CheckpointCost(price_seconds=4.0, upload_seconds=30.0)
    between = between_interruptions(24.0, machines=4)
    assert between == 21_600
    best = best_interval(cost, between)
    assert best == math.sqrt(2 * 4.0 * 21_600)
    values = [goodput(best * factor, cost, 60.0, between) for factor in (0.25, 0.5, 0.9, 1.0, 1.1, 2.0, 4.0)]
    # Young's interval is of first order: the maximum is a little beside it.
    assert max(values) - values[3] < 1e-5
    assert all(a < b for a, b in pairwise(values[:3])) and all(a > b for a, b in pairwise(values[4:]))


def test_checkpoints_that_cost_nothing_follow_each_other_as_storage_takes_them() -> None:
    cost = CheckpointCost(price_seconds=0.0, upload_seconds=30.0)
    assert best_interval(cost, 1e6) == UPLOADS_APART * 30.0
    assert best_every_steps(cost, 1e6, step_seconds=0.7) == math.ceil(UPLOADS_APART * 30.0 / 0.7)
    assert best_every_steps(CheckpointCost(price_seconds=0.0, upload_seconds=0.0), 1e6, step_seconds=1.0) == 1


def test_more_machines_want_checkpoints_more_often() -> None:
    cost = CheckpointCost(price_seconds=2.0, upload_seconds=1.0)
    every = [best_every_steps(cost, between_interruptions(24, machines), 1.0) for machines in (1, 4, 16, 64)]
    assert every == [588, 294, 147, 74]


def test_nothing_is_left_where_recovery_takes_longer_than_machines_last() -> None:
    cost = CheckpointCost(price_seconds=1.0, upload_seconds=1.0)
    assert goodput(10.0, cost, 1e6, 10.0) == 0.0
    assert goodput_between_regular(10.0, cost, 60.0, 50.0) == 0.0
