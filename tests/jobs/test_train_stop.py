"""Stopped by `ray job stop` or a signal: one more checkpoint, status 75, and the same weights in the end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from drl_dist.checkpoints.storage import checkpoint_name, complete_checkpoints
from drl_dist.common.program import EXIT_STOPPED
from drl_dist.localhost import MlflowServer, RayHead
from tests.jobs.training_jobs import (
    LABELLED,
    STEPS,
    Job,
    assert_equal_checkpoints,
    run,
    submit,
    tracked,
    words,
    workers,
)
from tests.support import ROOT, wait_for

OFTEN = 10
"""Steps between checkpoints."""

pytestmark = [pytest.mark.integration, pytest.mark.faults]


def steps(folder: Path) -> list[int]:
    return [stored.step for stored in complete_checkpoints(str(folder))]


def test_a_stopped_run_ends_at_a_checkpoint_and_goes_on_to_the_same_weights(
    straight: Job,
    ray_head: RayHead,
    mlflow_server: MlflowServer,
    digits: Path,
    storage: Path,
    server_environment: dict[str, str],
) -> None:
    folder = storage / "stopped"
    options = words(digits, storage, "stopped", "--num-workers", "2", "--checkpoint.every-steps", str(OFTEN), *LABELLED)
    jobs: list[Job] = []
    endless = [*options, "--train.num-steps", "1000000"]
    submission = threading.Thread(
        target=lambda: jobs.append(
            submit(ray_head, mlflow_server.environment(), endless, submission_id="to-be-stopped")
        )
    )
    submission.start()
    wait_for(lambda: (folder / checkpoint_name(OFTEN) / "checksums.json").exists() or not submission.is_alive())
    # As `ray job stop` does it, without the seconds that its own start takes.
    stop = urllib.request.Request(
        f"{ray_head.address}/api/jobs/to-be-stopped/stop",
        headers={"Authorization": f"Bearer {ray_head.environment()['RAY_AUTH_TOKEN']}"},
        method="POST",
    )
    urllib.request.urlopen(stop, timeout=60).close()
    submission.join()
    told = re.search(r"^stopped by SIGTERM after step (\d+), whose .*; the same command resumes$", jobs[0].output, re.M)
    assert told, jobs[0].output
    at = int(told[1])
    assert steps(folder)[0] == at
    assert all(step % OFTEN == 0 for step in steps(folder)[1:])
    assert f"step {at}/1000000: asked to stop" in jobs[0].output
    assert tracked(mlflow_server, "stopped").info.status == "KILLED"
    assert at < STEPS, "too late to be compared with the straight run"

    # Two signals before the first step: the second one waits for nobody.
    earlier = set(workers(ray_head))
    with subprocess.Popen(
        # A shell lets what it starts in the background ignore SIGINT, tests and their children too.
        ["env", "--default-signal=INT", sys.executable, str(ROOT / "jobs" / "train_digits.py"), *endless],
        env=server_environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as job:
        assert job.stdout is not None
        lines: list[str] = []
        began = 0.0
        for line in job.stdout:
            lines.append(line)
            if f"resuming after step {at}, 2 workers" in line:
                wait_for(lambda: set(workers(ray_head)) - earlier)
                job.send_signal(signal.SIGINT)
            elif line.startswith("SIGINT: all ranks stop"):
                job.send_signal(signal.SIGTERM)
                began = time.monotonic()
        status = job.wait(60)
        seconds = time.monotonic() - began
    assert began, "".join(lines)
    assert status == EXIT_STOPPED, lines
    assert lines[-1] == "stopped by SIGTERM; the same command resumes\n", lines
    assert seconds < 60
    assert steps(folder)[0] == at
    assert tracked(mlflow_server, "stopped").info.status == "KILLED"

    rest = run(server_environment, [*options, "--train.num-steps", str(STEPS)])
    assert rest.status == 0, rest.output
    assert f"resuming after step {at}" in rest.output
    assert_equal_checkpoints(folder / checkpoint_name(STEPS), storage / "straight" / checkpoint_name(STEPS))
    assert tracked(mlflow_server, "stopped").info.status == "FINISHED"


_HOLDER = """
import ray, time
ray.init(logging_level="ERROR")
@ray.remote(num_cpus=2)
def hold():
    print("all processors are taken")
    time.sleep(600)
ray.get(hold.remote())
"""


def test_a_new_run_is_stopped_while_it_waits_to_look_at_a_workers_memory(
    digits: Path, tmp_path: Path, server_environment: dict[str, str]
) -> None:
    options = [*words(digits, tmp_path / "runs", "waiting"), "--engine.memory-gib", "1"]
    pipes = {"env": server_environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([sys.executable, "-c", _HOLDER], **pipes) as holder:
        try:
            assert holder.stdout is not None and any("are taken" in line for line in holder.stdout)
            with subprocess.Popen([sys.executable, str(ROOT / "jobs" / "train_digits.py"), *options], **pipes) as job:
                assert job.stdout is not None
                assert any("1 worker to start on 1 CPU; free now: 0 of 2 CPUs" in line for line in job.stdout)
                # Until Ray waits, too.
                time.sleep(3)
                job.send_signal(signal.SIGTERM)
                try:
                    output, _ = job.communicate(timeout=60)
                finally:
                    job.kill()
        finally:
            holder.kill()
    assert job.returncode == EXIT_STOPPED and output.endswith("stopped by SIGTERM; the same command resumes\n"), output
    assert not (tmp_path / "runs").exists()
