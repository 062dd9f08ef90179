"""A run whose workers share its state: killed, resumed, and taken over by a worker who has nobody to share it with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drl_dist.checkpoints.format import read_checkpoint
from drl_dist.checkpoints.storage import checkpoint_name
from drl_dist.localhost import RayHead
from tests.jobs.training_jobs import LABELLED, assert_equal_checkpoints, run, survive_a_kill, words
from tests.support import subprocess_environment

pytestmark = [pytest.mark.integration, pytest.mark.faults]
EVERY, STEPS = 20, 40


def options(digits: Path, storage: Path, name: str, *more: str) -> list[str]:
    given = words(digits, storage, name, "--num-workers=2", "--tracking.uri=none", f"--checkpoint.every-steps={EVERY}")
    return [*given, *LABELLED, *more]


def test_a_killed_worker_changes_nothing(ray_head: RayHead, digits: Path, tmp_path: Path) -> None:
    environment = subprocess_environment(ray_head.environment())
    whole = run(environment, options(digits, tmp_path, "whole", "--engine.shard", f"--train.num-steps={STEPS}"))
    assert whole.status == 0, whole.output
    killed = options(digits, tmp_path, "killed", "--engine.shard", f"--train.num-steps={STEPS}")
    first = tmp_path / "killed" / checkpoint_name(EVERY)
    survive_a_kill(ray_head, environment, killed, first)
    assert_equal_checkpoints(*(tmp_path / name / checkpoint_name(STEPS) for name in ("killed", "whole")))

    # Of workers that take two CPUs each there is room for one.
    alone = ("--engine.shard", "--num-workers=1:2", "--cpus-per-worker=2", f"--train.num-steps={STEPS + 5}")
    rest = run(environment, options(digits, tmp_path, "whole", *alone))
    assert rest.status == 0 and f"resuming after step {STEPS}" in rest.output, rest.output
    before, after = (read_checkpoint(tmp_path / "whole" / checkpoint_name(step)) for step in (STEPS, STEPS + 5))
    assert (before.state.world_size, after.state.world_size) == (2, 1)
    assert not torch.equal(before.tensors["ema"]["stem.weight"], after.tensors["ema"]["stem.weight"])
