"""Starting the training job, and what it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from drl_dist.checkpoints.format import PARTS, read_checkpoint
from drl_dist.localhost import MlflowServer, RayHead, submit_job
from tests.support import ROOT, titled, wait_for

STEPS, EVERY = 90, 30
"""Of the run that nothing happens to, and between its checkpoints."""

TINY = (
    "--setting",
    "t6",
    "--model.width",
    "8",
    "--model.time-embedding-dim",
    "8",
    "--model.time-hidden-dim",
    "16",
    "--mcmc.num-chain-steps",
    "3",
    "--train.batch-size",
    "8",
    "--tracking.num-samples",
    "5",
    "--checkpoint.keep",
    "None",
)

LABELLED = ("--condition.kind", "class")
"""Of the run that nothing happens to: its energies know the digits."""


@dataclass
class Job:
    """How one ended."""

    status: int
    output: str
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)


def words(data: str | Path, storage: str | Path, name: str, *more: str) -> list[str]:
    return ["--data", str(data), "--storage", str(storage), "--run-name", name, *TINY, *more]


def run(environment: Mapping[str, str], options: list[str], command: str = "train_digits.py") -> Job:
    """The command itself, which joins the cluster that the environment names."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / command), *options],
        env=dict(environment),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=400,
        check=False,
    )
    return Job(done.returncode, done.stdout, time.monotonic() - began, done.stdout.splitlines())


def submit(
    head: RayHead,
    environment: Mapping[str, str],
    options: list[str],
    command: str = "train_digits.py",
    submission_id: str | None = None,
) -> Job:
    """The command by way of ``ray job submit``."""
    lines: list[str] = []
    status = submit_job(
        head,
        ["python", f"jobs/{command}", *options],
        environment=environment,
        working_dir=ROOT,
        submission_id=submission_id,
        echo=lines.append,
        timeout_seconds=400,
    )
    return Job(status, "\n".join(lines), lines=lines)


def workers(head: RayHead) -> list[int]:
    """Process ids of the training workers."""
    return titled(head, "ray::RayTrainWorker")


def runs_of(server: MlflowServer, name: str) -> list[Run]:
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("drl_dist")
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'"))


def tracked(server: MlflowServer, name: str) -> Run:
    runs = runs_of(server, name)
    assert len(runs) == 1
    return runs[0]


def assert_equal_checkpoints(one: Path, other: Path) -> None:
    first, second = read_checkpoint(one, PARTS), read_checkpoint(other, PARTS)
    assert first.state == second.state
    for part in PARTS:
        assert first.tensors[part].keys() == second.tensors[part].keys() != set()
        for name, tensor in first.tensors[part].items():
            assert torch.equal(tensor, second.tensors[part][name]), f"{part} {name}"


def survive_a_kill(head: RayHead, environment: Mapping[str, str], options: Sequence[str], first: Path) -> None:
    """Train on digits to the end, while a worker is killed as soon as there is a checkpoint.

    Args:
        head: that the job runs on.
        environment: of the job.
        options: of ``jobs/train_digits.py``.
        first: folder of the checkpoint.
    """
    with subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "train_digits.py"), *options],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as job:
        wait_for(lambda: (first / "checksums.json").exists() or job.poll() is not None)
        os.kill(workers(head)[-1], signal.SIGKILL)
        output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert "Ray Train restarts from the newest checkpoint" in output, "the kill came too late to be a test"
    assert f"resuming after step {int(first.name.rpartition('_')[2])}" in output
