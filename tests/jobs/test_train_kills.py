"""SIGKILL of the driver, then of Ray's head, each while a checkpoint is on its way into storage: the same weights."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drl_dist.checkpoints.storage import checkpoint_name, stored_checkpoints
from drl_dist.localhost import MlflowServer, RayHead, processes
from tests.helpers.forked import kill
from tests.jobs.training_jobs import EVERY, LABELLED, STEPS, Job, assert_equal_checkpoints, run, tracked, words
from tests.support import ROOT, subprocess_environment

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(900)]


def wait_until_begun(upload: Path, job: subprocess.Popen[bytes]) -> None:
    """Until the first file of a checkpoint is there; the others follow within milliseconds."""
    deadline = time.monotonic() + 200
    while not upload.exists():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)


def test_driver_and_head_may_die(straight: Job, mlflow_server: MlflowServer, digits: Path, storage: Path) -> None:
    folder = storage / "kills"
    options = [
        *words(digits, storage, "kills"),
        *LABELLED,
        "--num-workers=2",
        f"--train.num-steps={STEPS}",
        f"--checkpoint.every-steps={EVERY}",
        "--tracking.sample-every-steps=75",
    ]
    command = [sys.executable, str(ROOT / "jobs" / "train_digits.py"), *options]
    with RayHead() as head:
        environment = subprocess_environment(head.environment(), mlflow_server.environment())
        with subprocess.Popen(command, env=environment) as job:
            wait_until_begun(folder / checkpoint_name(EVERY), job)
            kill(job)
        with subprocess.Popen(command, env=environment) as job:
            wait_until_begun(folder / checkpoint_name(2 * EVERY), job)
            processes.end(processes.tree(head.pid), signal.SIGKILL)
            assert job.wait(120) != 0
    assert tracked(mlflow_server, "kills").info.status != "FINISHED"
    # As a worker leaves it that dies right after its upload: Ray Train does not know of it.
    shutil.copytree(folder / checkpoint_name(EVERY), folder / checkpoint_name(1))
    with RayHead() as head:
        rest = run(
            subprocess_environment(head.environment(), mlflow_server.environment()), [*options, "--checkpoint.keep=1"]
        )
    assert rest.status == 0, rest.output
    assert "resuming after step" in rest.output
    assert_equal_checkpoints(folder / checkpoint_name(STEPS), storage / "straight" / checkpoint_name(STEPS))
    assert tracked(mlflow_server, "kills").info.status == "FINISHED"
    assert [stored.step for stored in stored_checkpoints(str(folder))] == [STEPS]
