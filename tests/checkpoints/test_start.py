"""Continuing from another run's checkpoint: only where its weights and its place in the data mean the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from drl_dist.checkpoints.format import CheckpointState, write_checkpoint
from drl_dist.checkpoints.storage import checkpoint_name
from drl_dist.checkpoints.warm_start import starting_point
from drl_dist.common.errors import UserError
from drl_dist.config.tree import Experiment, ModelConfig, OptimConfig, TrainConfig
from drl_dist.training.state import TrainState

EXPERIMENT = Experiment(
    preset="tiny",
    model=ModelConfig(resolution=8, channels=1, width=8, width_multipliers=(1,), num_res_blocks=1),
    train=TrainConfig(batch_size=4, num_steps=10),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (3, 5):
        (tmp_path / "run").mkdir(exist_ok=True)
        write_checkpoint(
            tmp_path / "run" / checkpoint_name(step),
            TrainState.create(EXPERIMENT).tensors(),
            CheckpointState(
                step=step, images_seen=4 * step, next_position=4 * step, seed=0, data_fingerprint="f00d", world_size=1
            ),
            EXPERIMENT,
        )
    return tmp_path / "run"


def test_a_checkpoint_or_the_newest_of_a_run(run: Path) -> None:
    other = dataclasses.replace(EXPERIMENT, optim=OptimConfig(learning_rate=1e-5, max_grad_norm=1.0))
    assert starting_point(str(run / checkpoint_name(3)), other, "f00d") == str(run / checkpoint_name(3))
    assert starting_point(str(run), other, "f00d") == str(run / checkpoint_name(5))


@pytest.mark.parametrize(
    ("experiment", "fingerprint", "message"),
    [
        (
            dataclasses.replace(
                EXPERIMENT,
                model=ModelConfig(resolution=8, channels=1, width=8, width_multipliers=(1,), num_res_blocks=2),
            ),
            "f00d",
            "got model.num_res_blocks: 1 -> 2, expected a checkpoint of the same network",
        ),
        (
            dataclasses.replace(EXPERIMENT, train=TrainConfig(batch_size=8, num_steps=10)),
            "f00d",
            "got train.batch_size: 4 -> 8",
        ),
        (EXPERIMENT, "beef", "got a checkpoint of a run on other data"),
        (
            dataclasses.replace(EXPERIMENT, train=TrainConfig(batch_size=4, num_steps=5)),
            "f00d",
            "got 5 steps made, expected fewer than the 5",
        ),
    ],
)
def test_what_cannot_go_on_is_told(run: Path, experiment: Experiment, fingerprint: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        starting_point(str(run), experiment, fingerprint)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got no complete checkpoint there or directly below"):
        starting_point(str(tmp_path), EXPERIMENT, "f00d")
