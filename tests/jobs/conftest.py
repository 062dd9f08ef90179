"""Data and a model for the jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from drl_dist.localhost import MlflowServer, RayHead
from tests.gcs import gcs_bucket, gcs_emulator
from tests.jobs.training_jobs import EVERY, LABELLED, STEPS, Job, submit, words
from tests.support import write_tiny_checkpoint

__all__ = ["gcs_bucket", "gcs_emulator"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", width=8, num_chain_steps=30)


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "runs::v2 50%20 #1 [a]?*"


@pytest.fixture(scope="session")
def straight(ray_head: RayHead, mlflow_server: MlflowServer, digits: Path, storage: Path) -> Job:
    """A run on two workers that nothing happens to."""
    job = submit(
        ray_head,
        mlflow_server.environment(),
        words(
            digits,
            storage,
            "straight",
            "--num-workers",
            "2",
            "--train.num-steps",
            str(STEPS),
            "--checkpoint.every-steps",
            str(EVERY),
            "--tracking.sample-every-steps",
            "75",
            "--model.data-std",
            "none",
            *LABELLED,
        ),
    )
    assert job.status == 0, job.output
    return job
