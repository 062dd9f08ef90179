"""Training on damaged data that tolerates it: the log of substitutes has each damaged position exactly once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drl_dist.data.order import SampleOrder
from drl_dist.data.substitutes import SUBSTITUTES, read_substitutes
from drl_dist.localhost import MlflowServer
from tests.data.sets import write_set
from tests.jobs.training_jobs import run, tracked, words
from tests.support import flip_bit

pytestmark = [pytest.mark.integration, pytest.mark.faults]

COUNTS = (16, 16, 16, 16)


def test_a_damaged_shard_under_substitute(
    tmp_path: Path, mlflow_server: MlflowServer, server_environment: dict[str, str]
) -> None:
    data, storage = tmp_path / "data", tmp_path / "runs"
    names = [shard.name for shard in write_set(str(data), COUNTS).shards]
    flip_bit(data / names[1])
    (data / names[2]).unlink()

    def job(workers: int, steps: int, limit: int):
        more = ("--num-workers", str(workers), "--train.num-steps", str(steps), "--loader.max-substitutes", str(limit))
        often = ("--checkpoint.every-steps", "3", "--loader.on-damage", "substitute")
        return run(server_environment, words(data, storage, "borne", *often, *more))

    def damaged(steps: int) -> list[tuple[int, str, int]]:
        found = SampleOrder(COUNTS, 0, 4).locate(np.arange(8 * steps))
        return [
            (position, names[shard], sample)
            for position, (shard, sample) in enumerate(zip(found.shard, found.sample, strict=True))
            if shard in (1, 2)
        ]

    def replaced() -> list[tuple[int, str, int]]:
        return [(one.position, one.shard, one.sample) for one in read_substitutes(str(storage / "borne"))]

    # Over the limit in the first step after a checkpoint.
    limit = len(damaged(3))
    stopped = job(2, 8, limit)
    assert stopped.status == 2, stopped.output
    over = next(steps for steps in range(4, 9) if len(damaged(steps)) > limit)
    expected = f"data {data}: got {len(damaged(over))} damaged samples by step {over}, expected at most {limit}"
    assert stopped.lines[-1].startswith(expected), stopped.output
    assert f"{storage}/borne/{SUBSTITUTES}" in stopped.lines[-1]
    assert replaced() == damaged(over)
    # The steps since the checkpoint are made again, and their lines written again.
    resumed = job(2, 8, 1000)
    assert resumed.status == 0, resumed.output
    assert "resuming after step 3" in resumed.output
    assert f"of shard {data / names[2]} (no such file)" in resumed.output
    assert replaced() == damaged(8)
    longer = job(1, 11, 1000)
    assert longer.status == 0, longer.output
    assert replaced() == damaged(11)
    history = tracked(mlflow_server, "borne").data.metrics
    assert history["reliability/bad_samples"] == len(damaged(11))
    assert {one.reason for one in read_substitutes(str(storage / "borne")) if one.shard == names[2]} == {"no such file"}
