"""The sweep against real servers: killed in the middle, started again, one trial that diverges."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest
from mlflow import MlflowClient

from drl_dist.checkpoints.step_costs import read_step_costs
from drl_dist.checkpoints.storage import newest_checkpoint
from drl_dist.jobs.sweep.record import Curve, Outcome, read
from drl_dist.jobs.train.options import parse_train
from drl_dist.localhost import MlflowServer
from tests.helpers.forked import kill
from tests.jobs.training_jobs import Job
from tests.support import ROOT, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(1200)]

SPACE = {"mcmc.level_scale": [300.0, 1.0, {"power": 0.0}]}
TINY = """--setting t6 --model.data-std none
--model.width 8 --model.time-embedding-dim 8 --model.time-hidden-dim 16 --mcmc.num-chain-steps 3
--train.batch-size 8 --optim.warmup-steps 10 --train.num-steps 40 --tracking.num-samples 5
--tracking.score-features pixels --tracking.score-num-images 16 --tracking.score-every-steps 10
--search grid --no-early-stopping --max-concurrent 1 --num-workers 2 --engine.memory-gib 4
--rescore-trials 1 --rescore-images 16 --rescore-seeds 3"""


def words(data: Path, storage: Path) -> list[str]:
    given = ["--preset", "digits", "--data", str(data), "--storage", str(storage), "--sweep-name", "s"]
    return [*given, "--space", json.dumps(SPACE), *TINY.split()]


def start(environment: dict[str, str], options: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "sweep.py"), *options],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, server_environment: dict[str, str]
) -> tuple[Path, Job, int]:
    """A sweep's folder, its second start's output, and when trial 0 had ended in the first start, which was killed."""
    storage = tmp_path_factory.mktemp("sweeps")
    folder = storage / "s"
    environment = server_environment | {"XDG_CACHE_HOME": str(storage / "cache")}
    with start(environment, words(digits, storage)) as first:
        try:
            # On the only two CPUs the trial with two workers still finds room.
            torn = folder / "s-0001" / "checkpoint_000000020" / "checksums.json"
            wait_for(lambda: torn.exists() or first.poll() is not None, 600)
            assert first.poll() is None, first.stdout and first.stdout.read()
        finally:
            kill(first)
    ended = (folder / "s-0000" / "outcome.json").stat().st_mtime_ns
    with start(environment, words(digits, storage)) as second:
        output, _ = second.communicate(timeout=900)
    return folder, Job(second.returncode, output, lines=output.splitlines()), ended


def test_a_killed_sweep_goes_on_and_makes_no_trial_twice(swept: tuple[Path, Job, int]) -> None:
    folder, job, ended = swept
    assert job.status == 0, job.output
    assert "1 of 3 trials ended, 1 to continue, 1 to start, 1 at a time on 2 workers each" in job.output
    assert (folder / "s-0000" / "outcome.json").stat().st_mtime_ns == ended
    assert "run s-0000" not in job.output
    assert re.search(r"run s-0001: resuming after step (20|30|40)", job.output)
    curve = read(str(folder / "s-0001"), "curve.json", Curve)
    assert curve is not None and [point.step for point in curve.points] == [10, 20, 30, 40]


def test_a_trial_chooses_how_its_step_fits_into_memory(swept: tuple[Path, Job, int]) -> None:
    # Before its record is written a worker looks, outside of the places that Ray Tune keeps for the trial.
    assert all(read_step_costs(str(swept[0] / f"s-{number:04d}")) for number in range(3))


def test_the_trial_that_diverged_ended_itself(swept: tuple[Path, Job, int], mlflow_server: MlflowServer) -> None:
    folder = swept[0]
    outcome = read(str(folder / "s-0000"), "outcome.json", Outcome)
    assert outcome is not None and outcome.status == "diverged" and outcome.score == 1e12
    assert outcome.step < 40 and "training diverged at step" in outcome.reason


def test_the_tracker_shows_the_sweep_its_trials_and_the_best_model(
    swept: tuple[Path, Job, int], mlflow_server: MlflowServer
) -> None:
    folder, client = swept[0], MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("drl_dist")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 's' and tags.kind = 'sweep'")
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    status = {run.info.run_name: (run.info.status, run.data.tags["sweep.status"]) for run in children}
    finished = ("FINISHED", "finished")
    assert status == {"s-0000": ("FAILED", "diverged"), "s-0001": finished, "s-0002": finished}
    assert parent.info.status == "FINISHED"
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    plots = {"learning_curves.png", "parallel_coordinates.png", "score_against_hyperparameters.png"}
    assert names == plots | {"table.csv", "table.parquet"}
    table = pyarrow.parquet.read_table(folder / "table.parquet")
    assert pyarrow.csv.read_csv(folder / "table.csv")["trial"].to_pylist() == table["trial"].to_pylist()
    assert table["status"].to_pylist() == ["finished", "finished", "diverged"]
    winner = int(table["trial"][0].as_py())
    assert table["final_score"].to_pylist()[0] is not None
    version = client.get_model_version_by_alias("digits-s", "best")
    assert version.tags["run_name"] == f"s-{winner:04d}" and version.tags["step"] == "40"
    newest = newest_checkpoint(str(folder / f"s-{winner:04d}"))
    assert newest is not None and newest.step == 40


def test_the_end_names_a_command_that_can_be_run(swept: tuple[Path, Job, int]) -> None:
    line = next(line for line in swept[1].lines if line.startswith("ray job submit"))
    prefix, command, *options = shlex.split(line.partition(" -- ")[2])
    run, _ = parse_train("digits", options)
    assert (prefix, command) == ("python", "jobs/train_digits.py")
    # What the sweep left to the data is a number in its record, and in the command.
    recorded = json.loads((swept[0] / "sweep.json").read_text())["experiment"]["model"]["data_std"]
    assert run.experiment.model.data_std == recorded == 0.8466
    assert run.experiment.model.width == 8 and run.experiment.train.num_steps == 1000


def test_the_best_model_can_be_sampled_at_once(
    swept: tuple[Path, Job, int], tmp_path: Path, server_environment: dict[str, str]
) -> None:
    options = ["--model", "models:/digits-s@best", "--num-images", "4", "--out", str(tmp_path / "samples")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "sample.py"), *options],
        env=server_environment | {"HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "samples" / "grid.png").exists()
