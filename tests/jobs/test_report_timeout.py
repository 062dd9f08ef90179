"""A rank that never comes to `ray.train.report`: the others give up, and all start from scratch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray.train.v2._internal.constants import COLLECTIVE_TIMEOUT_S_ENV_VAR, ENV_VARS_TO_PROPAGATE

from drl_dist.jobs.train.driver import COLLECTIVE_SECONDS, CONTROLLER_ENVIRONMENT
from drl_dist.localhost import RayHead
from tests.support import subprocess_environment

JOB = """
import os, sys, time
from pathlib import Path
import ray, ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from drl_dist.jobs.train.faults.restarts import RestartPolicy
from drl_dist.jobs.train.driver import CONTROLLER_ENVIRONMENT

folder = sys.argv[1]
def work():
    come = Path(folder) / "come"
    if ray.train.get_context().get_world_rank() == 1 and not come.exists():
        come.touch()
        time.sleep(600)
    ray.train.report({"step": 1})

ray.init(logging_level="ERROR")
for name, value in CONTROLLER_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
DataParallelTrainer(
    work,
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(
        name="late", storage_path=folder, failure_config=FailureConfig(max_failures=-1), callbacks=[RestartPolicy()]
    ),
).fit()
"""


def test_the_time_out_is_that_of_the_other_collectives_and_reaches_ray_s_controller() -> None:
    assert CONTROLLER_ENVIRONMENT[COLLECTIVE_TIMEOUT_S_ENV_VAR] == str(COLLECTIVE_SECONDS) == "1800"
    assert CONTROLLER_ENVIRONMENT.keys() <= ENV_VARS_TO_PROPAGATE


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_ranks_that_wait_in_report_give_up_and_all_restart(ray_head: RayHead, tmp_path: Path) -> None:
    environment = subprocess_environment(ray_head.environment(), {COLLECTIVE_TIMEOUT_S_ENV_VAR: "5"})
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(tmp_path)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    told = [line for line in done.stdout.splitlines() if "worker 0 failed" in line]
    assert len(told) == 1, done.stdout
    assert "timed out after 5." in told[0]
    assert "ranks have not joined the collective operation: [1]" in told[0]
    assert "Ray Train restarts from the newest checkpoint (restart 1 of at most 5" in told[0]
