"""A run with fewer workers than it wants takes in more where a checkpoint is complete, and nowhere else."""

from __future__ import annotations

from typing import Any, cast

import pytest

from drl_dist.config.presets import preset
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.train.faults.restarts import ScaleUp, ScaleUpError
from drl_dist.jobs.train.metrics import Clock
from drl_dist.training.loop import StepReport

NODES: dict[str, dict[str, float]] = {
    "one": {"CPU": 3.0, "memory": 1.0},
    "other": {"CPU": 5.0, "GPU": 1.0},
    "full": {"memory": 1.0},
}


class Step:
    """All that is looked at."""

    def __init__(self, step: int) -> None:
        self.step, self.num_steps = step, 100


def tell(scale_up: ScaleUp, step: int) -> None:
    scale_up.on_step(cast(StepReport, Step(step)), cast(Any, None))


def made(clock: Clock, world_size: int, **run: Any) -> ScaleUp:
    config = RunConfig(experiment=preset("digits"), num_workers=8, min_workers=1, **run)
    return ScaleUp(config, world_size, clock, lambda: NODES)


def test_it_waits_for_a_checkpoint_and_leaves_the_last_step_alone() -> None:
    clock = Clock()
    scale_up = made(clock, 2)
    tell(scale_up, 1)
    clock.checkpoint_at += 1
    tell(scale_up, 100)
    with pytest.raises(ScaleUpError, match="6 more workers can join the 2 there are"):
        tell(scale_up, 2)


@pytest.mark.parametrize(
    ("run", "world_size", "could_join"),
    [({}, 2, 6), ({}, 7, 1), ({"cpus_per_worker": 3}, 2, 2), ({"use_gpu": True}, 2, 1), ({"cpus_per_worker": 6}, 2, 0)],
)
def test_room_is_counted_on_each_node(run: dict[str, Any], world_size: int, could_join: int) -> None:
    clock = Clock()
    scale_up = made(clock, world_size, **run)
    clock.checkpoint_at += 1
    if could_join:
        with pytest.raises(ScaleUpError) as raised:
            tell(scale_up, 1)
        assert raised.value.could_join == could_join
    # A second look at the same checkpoint changes nothing.
    tell(scale_up, 2)
