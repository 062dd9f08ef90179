"""Stopping and continuing changes nothing, bit for bit."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drl_dist.checkpoints.format import PARTS, CheckpointState, read_checkpoint, write_checkpoint
from drl_dist.common.batch import Batch
from drl_dist.config.presets import preset
from drl_dist.config.tree import EngineConfig, Experiment, McmcConfig
from drl_dist.data.index import open_index
from drl_dist.data.stream import ShardStream
from drl_dist.training.loop import StepReport, train
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.support import ROOT, subprocess_environment

HALF = 4


def tiny() -> Experiment:
    digits = preset("digits")
    return dataclasses.replace(
        digits,
        model=dataclasses.replace(digits.model, width=8, time_embedding_dim=8, time_hidden_dim=16),
        mcmc=McmcConfig(num_chain_steps=3),
        train=dataclasses.replace(digits.train, batch_size=8, num_steps=2 * HALF),
    )


class Recorder:
    """Losses and positions of all steps; a checkpoint after half of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.losses = folder, list[float]()

    def on_step(self, report: StepReport, state: TrainState) -> None:
        self.losses.append(float(report.result.loss))
        if report.step in (HALF, 2 * HALF):
            done = CheckpointState(
                step=report.step,
                images_seen=report.images_seen,
                next_position=report.images_seen,
                seed=0,
                data_fingerprint="",
                world_size=1,
            )
            write_checkpoint(self.folder / str(report.step), state.tensors(), done, tiny())


def run(url: str, folder: Path, *, resume: bool) -> list[float]:
    torch.set_num_threads(1)
    experiment, recorder = tiny(), Recorder(folder)
    state = TrainState.create(experiment)
    if resume:
        checkpoint = read_checkpoint(folder / str(HALF), PARTS)
        state.load_tensors(checkpoint.tensors, checkpoint.state.step)
    step = TrainStep(state, experiment, EngineConfig())
    batch_size = experiment.train.batch_size
    with ShardStream(open_index(url), seed=0, batch_size=batch_size, start_position=state.step * batch_size) as stream:
        train(step, state, experiment, stream, [recorder])
    return recorder.losses


@pytest.mark.integration
def test_half_then_a_fresh_process_then_half_equals_the_whole(digits: Path, tmp_path: Path) -> None:
    whole = run(str(digits), tmp_path, resume=False)
    expected = read_checkpoint(tmp_path / str(2 * HALF), PARTS).tensors
    (tmp_path / str(2 * HALF) / "checksums.json").unlink()

    script = (
        f"from tests.jobs.test_train_resume import *; print(run({str(digits)!r}, Path({str(tmp_path)!r}), resume=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == repr(whole[HALF:])
    resumed = read_checkpoint(tmp_path / str(2 * HALF), PARTS).tensors
    for part in PARTS:
        assert expected[part].keys() == resumed[part].keys() != set()
        for name, tensor in expected[part].items():
            assert torch.equal(tensor, resumed[part][name]), f"{part} {name}"


@pytest.mark.integration
def test_any_number_of_workers_sees_the_same_order(digits: Path) -> None:
    index = open_index(str(digits))

    def batches(rank: int, world_size: int, start: int, count: int) -> list[Batch]:
        with ShardStream(
            index, seed=1, batch_size=8, rank=rank, world_size=world_size, start_position=start, horizontal_flip=True
        ) as stream:
            return [batch for batch, _ in zip(stream, range(count), strict=False)]

    alone = batches(0, 1, 0, 6)
    for world_size in (2, 4):
        ranks = [batches(rank, world_size, 16, 4) for rank in range(world_size)]
        for step, shares in enumerate(zip(*ranks, strict=True)):
            positions = torch.cat([share.positions for share in shares])
            images = torch.cat([share.images for share in shares])[positions.argsort()]
            assert torch.equal(positions.sort().values, alone[step + 2].positions)
            assert torch.equal(images, alone[step + 2].images)
