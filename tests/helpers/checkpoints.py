"""Checkpoints of a few numbers."""

from __future__ import annotations

from pathlib import Path

import torch

from drl_dist.checkpoints.format import CheckpointState, write_checkpoint
from drl_dist.checkpoints.storage import checkpoint_name
from drl_dist.config.presets import preset


def add(run: Path, step: int) -> Path:
    folder = run / checkpoint_name(step)
    state = CheckpointState(step=step, images_seen=step, next_position=step, seed=0, data_fingerprint="f", world_size=1)
    parts = {part: {"a": torch.full((3,), float(step))} for part in ("weights", "ema", "optimizer")}
    write_checkpoint(folder, parts, state, preset("digits"))
    return folder
