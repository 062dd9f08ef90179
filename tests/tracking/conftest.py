"""Checkpoint folders to register."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from drl_dist.checkpoints.format import CheckpointState, write_checkpoint
from drl_dist.config.presets import preset


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[[int], Path]:
    """A checkpoint folder of a step; its tensors all equal the step."""

    def make(step: int) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        parts = {name: {"w": torch.full((4, 4), float(step))} for name in ("weights", "ema", "optimizer")}
        state = CheckpointState(
            step=step, images_seen=64 * step, next_position=64 * step, seed=0, data_fingerprint="f" * 64, world_size=1
        )
        write_checkpoint(folder, parts, state, preset("digits"))
        return folder

    return make
