"""The callbacks of a training worker, and the order in which they are called."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import create_autospec

import pytest

from drl_dist.config.presets import preset
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.sweep.trial import TrialScores
from drl_dist.jobs.train.callbacks import Checkpoints, build_callbacks
from drl_dist.jobs.train.faults.damage import Damage
from drl_dist.jobs.train.faults.restarts import ScaleUp
from drl_dist.jobs.train.faults.spares import Spare
from drl_dist.jobs.train.metrics import Clock, Exports, Stalling
from drl_dist.training.callbacks import Metrics, Progress, Samples, Scores
from drl_dist.training.loop import Callback
from drl_dist.training.watch import RunawayGuard


def built(
    *, is_first: bool, world_size: int = 2, scores: bool = True, trial: bool = True, spares: bool = True
) -> list[Callback]:
    def spec(kind: type) -> Any:
        return create_autospec(kind, instance=True)

    return build_callbacks(
        RunConfig(experiment=preset("digits"), num_workers=2, min_workers=1, spare_processes=spares),
        world_size=world_size,
        log=(lambda step, numbers: None) if is_first else None,
        exports=spec(Exports) if is_first else None,
        samples=spec(Samples),
        scores=spec(Scores) if scores else None,
        trial=spec(TrialScores) if trial else None,
        damage=spec(Damage),
        checkpoints=spec(Checkpoints),
        clock=Clock(),
    )


def kinds(callbacks: list[Callback]) -> list[type]:
    return [one.__class__ for one in callbacks]


COLLECTIVE = [RunawayGuard, Samples, Scores, TrialScores, Damage, Stalling]


def test_the_first_rank_logs_first_and_checkpoints_last() -> None:
    callbacks = built(is_first=True)
    assert kinds(callbacks) == [Progress, Metrics, Exports, *COLLECTIVE]
    assert cast(Stalling, callbacks[-1]).callback.__class__ is Checkpoints


def test_a_run_that_wants_more_workers_looks_for_them_before_pictures_are_drawn() -> None:
    assert kinds(built(is_first=True, world_size=1)) == [Progress, Metrics, Exports, ScaleUp, *COLLECTIVE]


@pytest.mark.parametrize("world_size", [1, 2])
def test_other_ranks_have_what_all_do_together(world_size: int) -> None:
    assert kinds(built(is_first=False, world_size=world_size)) == COLLECTIVE


def test_what_a_run_has_not_is_left_out() -> None:
    plain = [RunawayGuard, Samples, Damage, Stalling]
    assert kinds(built(is_first=False, scores=False, trial=False, spares=False)) == plain
    first = built(is_first=True, scores=False, trial=False, spares=False)
    assert kinds(first) == [Progress, Metrics, Exports, *plain]


def test_each_rank_of_a_run_that_is_no_trial_has_a_spare_process() -> None:
    for is_first in (False, True):
        found = kinds(built(is_first=is_first, trial=False))
        assert found == [Spare, *kinds(built(is_first=is_first, trial=False, spares=False))]
