"""What tests of several areas need."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from drl_dist.checkpoints.format import CheckpointState, write_checkpoint
from drl_dist.config.tree import Experiment, McmcConfig, ModelConfig, TrainConfig
from drl_dist.localhost import LocalServer, processes
from drl_dist.training.state import TrainState

ROOT = Path(__file__).resolve().parents[1]

NEEDED = {
    "chromium": Path("/usr/bin/chromium"),
    "dataset-fashion-mnist": Path("/usr/share/datasets/fashion-mnist"),
    "prometheus": Path("/usr/bin/promtool"),
}
"""Debian packages that tests use, and where each is found."""


BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
"""Of Chromium without a screen, which asks nobody else for anything."""


def require(package: str) -> Path:
    """The path of a Debian package's program or folder; without it the test is skipped, or fails under
    ``DRL_REQUIRE_ALL=1``, so that nothing is skipped unnoticed where everything should be there."""
    path = NEEDED[package]
    if path.exists():
        return path
    if os.environ.get("DRL_REQUIRE_ALL") == "1":
        pytest.fail(f"{package} is not installed (no {path}); run `apt-get install {package}`")
    pytest.skip(f"{package} is not installed (no {path})")


def subprocess_environment(*parts: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for a child that imports the project, without the user's own servers, plus `parts`."""
    foreign = ("RAY_", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    for part in parts:
        environment |= part
    return environment


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def flip_bit(path: Path) -> None:
    """Damage a file in its last byte; its size stays."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x10
    path.write_bytes(data)


def titled(server: LocalServer, title: str) -> list[int]:
    """Process ids of the processes of a Ray head or node whose title begins so."""
    found: list[int] = []
    for process in processes.tree(server.pid):
        try:
            line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if line.startswith(title.encode()):
            found.append(process.pid)
    return found


def write_tiny_checkpoint(folder: Path, *, width: int, num_chain_steps: int) -> Path:
    """A checkpoint of a tiny network whose averaged weights are not its weights."""
    experiment = Experiment(
        preset="tiny",
        model=ModelConfig(resolution=8, channels=1, width=width, width_multipliers=(1, 2), num_res_blocks=1),
        mcmc=McmcConfig(num_chain_steps=num_chain_steps),
        train=TrainConfig(batch_size=4, num_steps=3),
    )
    parts = TrainState.create(experiment).tensors()
    generator = torch.Generator().manual_seed(1)
    parts["ema"] = {
        name: value + 0.01 * torch.randn(value.shape, generator=generator) for name, value in parts["ema"].items()
    }
    state = CheckpointState(step=3, images_seen=12, next_position=12, seed=0, data_fingerprint="0" * 64, world_size=1)
    write_checkpoint(folder, parts, state, experiment)
    return folder
