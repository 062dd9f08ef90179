"""Data and a model for the jobs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drl_dist.checkpoints.files import CheckpointState, write_checkpoint
from drl_dist.config import Experiment, McmcConfig, ModelConfig, TrainConfig
from drl_dist.training.state import TrainState
from tests.gcs import gcs_bucket, gcs_emulator
from tests.support import ROOT, subprocess_environment

__all__ = ["gcs_bucket", "gcs_emulator"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the handwritten digits."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run(
        [sys.executable, "-m", "datasets_prep.digits", "--out", str(folder), "--workers", "1"],
        cwd=ROOT,
        env=subprocess_environment(),
        check=True,
        timeout=120,
    )
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny network whose averaged weights are not its weights."""
    experiment = Experiment(
        preset="tiny",
        model=ModelConfig(resolution=8, channels=1, width=8, width_multipliers=(1, 2), num_res_blocks=1),
        mcmc=McmcConfig(num_chain_steps=30),
        train=TrainConfig(batch_size=4, num_steps=3),
    )
    state = TrainState.create(experiment)
    parts = state.tensors()
    generator = torch.Generator().manual_seed(1)
    parts["ema"] = {
        name: value + 0.01 * torch.randn(value.shape, generator=generator) for name, value in parts["ema"].items()
    }
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    write_checkpoint(
        folder,
        parts,
        CheckpointState(step=3, images_seen=12, next_position=12, seed=0, data_fingerprint="0" * 64, world_size=1),
        experiment,
    )
    return folder
