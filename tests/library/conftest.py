"""A checkpoint of a tiny network, and the model in it."""

from __future__ import annotations

from pathlib import Path

import pytest

import drl_dist
from tests.support import write_tiny_checkpoint


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", width=4, num_chain_steps=2)


@pytest.fixture(scope="package")
def model(checkpoint: Path) -> drl_dist.Model:
    return drl_dist.load(checkpoint)
