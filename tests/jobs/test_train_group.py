"""Ray Train with fewer actors, and what it does for the workers all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ResizeDecision, create_scaling_policy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from drl_dist.jobs.train.faults import restore
from drl_dist.jobs.train.faults.restore import broadcast
from drl_dist.jobs.train.group import GroupConfig, Trainer


def trainer(folder: Path, *, is_nested: bool = False, can_grow: bool = False, workers: Any = 2) -> Trainer:
    return Trainer(
        lambda: None,
        is_nested=is_nested,
        can_grow=can_grow,
        backend_config=GroupConfig(),
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name="a", storage_path=str(folder)),
    )


@pytest.mark.parametrize("is_nested", [False, True])
def test_actors_that_a_run_has_no_use_for_are_not_started(is_nested: bool, tmp_path: Path) -> None:
    made = trainer(tmp_path, is_nested=is_nested)
    left_out = {type(one) for one in DataParallelTrainer._create_default_callbacks(made)}
    left_out -= {type(one) for one in made._create_default_callbacks()}
    # Without that one, the places of a trial whose controller has died would be held until the sweep ends.
    assert left_out == ({DatasetsCallback} if is_nested else {DatasetsCallback, PlacementGroupCleanerCallback})


def policy(made: Trainer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scaling policy that Ray's controller is given."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(DataParallelTrainer, "_initialize_and_run_controller", lambda _self, **more: given.update(more))
    made._initialize_and_run_controller(scaling_policy=create_scaling_policy(made.scaling_config))
    return given["scaling_policy"]


def test_nobody_is_asked_for_machines_where_there_can_be_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = policy(trainer(tmp_path), monkeypatch)
    # Any of these would start an actor, for which there is no Ray here.
    found.after_controller_start(None)
    decision = found.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision) and decision.num_workers == 2
    found.make_decision_for_running_worker_group(None, None)
    asyncio.run(found.before_controller_shutdown())


@pytest.mark.parametrize(("can_grow", "workers"), [(True, 2), (False, (1, 2))])
def test_others_keep_the_policy_of_ray(
    can_grow: bool, workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path, can_grow=can_grow, workers=workers)
    found = policy(made, monkeypatch)
    assert type(found) is type(create_scaling_policy(made.scaling_config))
    assert isinstance(found, ElasticScalingPolicy) == (workers != 2)


@pytest.mark.parametrize("size", [0, 1, 10, 23])
def test_what_the_first_rank_has_reaches_the_others(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content, sent, cpu = bytes(range(size)), list[torch.Tensor](), torch.device("cpu")
    monkeypatch.setattr(restore, "_CHUNK_BYTES", 10)
    monkeypatch.setattr(restore.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(restore.distributed, "broadcast", lambda tensor, _first: sent.append(tensor.clone()))
    assert broadcast(cpu, content) == content
    monkeypatch.setattr(restore.distributed, "broadcast", lambda tensor, _first: tensor.copy_(sent.pop(0)))
    assert broadcast(cpu, None) == content
    assert not sent
