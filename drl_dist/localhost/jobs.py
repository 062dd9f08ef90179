"""Submission of a job through the command line, as users do it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from drl_dist.common.proxies import spare_loopback
from drl_dist.localhost.ray_head import RayHead

STOP_SECONDS = 300
"""Seconds that ``ray job stop`` waits for a job before killing it: a step, a checkpoint and its upload take longer than
Ray's default of 3 seconds."""


def submit_job(
    head: RayHead,
    entrypoint: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    working_dir: str | Path = ".",
    submission_id: str | None = None,
    echo: Callable[[str], None] = print,
    timeout_seconds: float | None = None,
) -> int:
    """Run ``ray job submit --working-dir DIR -- ENTRYPOINT`` and pass its output on as it comes.

    Args:
        entrypoint: the command as words, e.g. ``["python", "jobs/train_digits.py", "--num-workers", "2"]``.
        environment: variables of the job, in addition to the head's and to one that makes ``ray job stop`` wait.
        working_dir: folder that is sent to the cluster; the job starts in it.
        echo: called with each line, without its line end.

    Returns:
        0 if the job succeeded; 1 if it failed, whatever its exit status.

    Raises:
        TimeoutError: the job still ran after `timeout_seconds`; it continues to run until the head stops.
    """
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "job",
        "submit",
        f"--address={head.address}",
        f"--working-dir={working_dir}",
        "--log-style=record",
    ]
    if submission_id is not None:
        command.append(f"--submission-id={submission_id}")
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **(environment or {})}
    command.append("--runtime-env-json=" + json.dumps({"env_vars": variables}))
    client_environment = os.environ | head.environment()
    spare_loopback(client_environment)
    expired = threading.Event()
    with subprocess.Popen(
        [*command, "--", *entrypoint],
        env=client_environment,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as client:

        def expire() -> None:
            expired.set()
            client.kill()

        timer = threading.Timer(timeout_seconds or 0, expire)
        if timeout_seconds is not None:
            timer.start()
        try:
            assert client.stdout is not None
            for line in client.stdout:
                echo(line.rstrip("\n"))
            status = client.wait()
        except BaseException:
            client.kill()
            raise
        finally:
            timer.cancel()
    if expired.is_set():
        raise TimeoutError(f"job {' '.join(entrypoint)} still ran after {timeout_seconds} s")
    return status
