"""What the training job cannot use: one sentence, early, nothing half-written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drl_dist.checkpoints.run_record import RUN_CONFIG
from drl_dist.checkpoints.step_costs import STEP_COSTS, read_step_costs
from drl_dist.localhost import MlflowServer
from tests.jobs.training_jobs import run, runs_of, tracked, words

pytestmark = pytest.mark.integration


def test_a_damaged_image_ends_the_job_with_its_name(
    digits: Path, tmp_path: Path, mlflow_server: MlflowServer, server_environment: dict[str, str]
) -> None:
    data, storage = tmp_path / "data", tmp_path / "runs"
    data.mkdir()
    for path in digits.iterdir():
        content = bytearray(path.read_bytes())
        if path.suffix == ".tar":
            content[len(content) // 2] ^= 1
        (data / path.name).write_bytes(content)
    job = run(server_environment, words(data, storage, "damaged", "--num-workers", "2"))
    assert job.status == 2, job.output
    assert "Traceback" not in job.output
    assert "restarts" not in job.output
    assert re.match(rf"shard {data}/\S+\.tar: got ", job.lines[-1]), job.output
    assert tracked(mlflow_server, "damaged").info.status == "FAILED"
    assert not list((storage / "damaged").glob("checkpoint_*"))


DEAD = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("more", "environment", "sentence"),
    [
        (("--data", "/nonesuch"), {}, "data /nonesuch: got an empty or missing folder, expected image shards"),
        (("--model.resolution", "16"), {}, r"got 8x8\S*.*expected 16x16\S*"),
        (("--model.channels", "3"), {}, r"data .*digits.* got 8x8.*expected 8x8.*as the model has"),
        (("--num-workers", "8"), {}, "8 workers of 1 CPU: got a cluster with 2 CPU, expected 8 CPU"),
        (("--use-gpu",), {}, "1 worker of 1 GPU: got a cluster with 0 GPU"),
        (("--tracking.uri", DEAD), {}, f"MLflow server {DEAD}: got no answer"),
        ((), {"MLFLOW_TRACKING_URI": ""}, r"MLflow server: got no address, .* or --tracking\.uri none to have metrics"),
        (("--storage", "gs://nowhere/runs"), {"STORAGE_EMULATOR_HOST": DEAD}, "storage gs://nowhere/runs/bad: got "),
        (("--storage", "ftp://host/runs"), {}, "config field storage: got ftp://host/runs, expected a path"),
        (("--storage", "/proc/runs"), {}, "writing /proc/runs/"),
        ((), {"RAY_ADDRESS": "127.0.0.1:9"}, "Ray cluster: got no answer"),
    ],
)
def test_bad_input_ends_within_a_minute_in_one_sentence(
    more: tuple[str, ...],
    environment: dict[str, str],
    sentence: str,
    digits: Path,
    tmp_path: Path,
    server_environment: dict[str, str],
) -> None:
    job = run(server_environment | environment, words(digits, tmp_path / "runs", "bad", *more))
    assert job.status == 2, job.output
    assert re.search(sentence, job.lines[-1]), job.output
    # Where an address does not answer, it says what it waits for.
    assert all(re.fullmatch(r"run bad: .* for \d+ s so far", line) for line in job.lines[:-1]), job.output
    assert job.seconds < 60
    assert not (tmp_path / "runs").exists()


def test_a_step_that_fits_in_no_way_leaves_nothing_behind(
    digits: Path, tmp_path: Path, mlflow_server: MlflowServer, server_environment: dict[str, str]
) -> None:
    storage = tmp_path / "runs"
    asked = words(digits, storage, "large", "--train.num-steps", "1", "--tracking.sample-every-steps", "100")
    job = run(server_environment, [*asked, "--engine.memory-gib", "1e-5"])
    assert job.status == 2, job.output
    assert re.match(r"config field engine.memory: got auto with 1 MiB .*, expected at least", job.lines[-1]), job.output
    assert not storage.exists() and runs_of(mlflow_server, "large") == []
    # A smaller network is another experiment, and no run is in its way.
    job = run(server_environment, [*asked, "--engine.memory-gib", "4", "--model.width", "4"])
    assert job.status == 0, job.output
    # The worker found there what the look before had traced: it has not written it again.
    costs, started = storage / "large" / STEP_COSTS, storage / "large" / RUN_CONFIG
    assert read_step_costs(str(storage / "large")) and costs.stat().st_mtime_ns < started.stat().st_mtime_ns
    assert "memory: all at once" in job.output


def test_a_truncated_shard_is_told_before_anything_starts(
    digits: Path, tmp_path: Path, server_environment: dict[str, str]
) -> None:
    for path in digits.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = sorted(tmp_path.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:-1024])
    job = run(server_environment, words(tmp_path, tmp_path / "runs", "bad"))
    assert (job.status, len(job.lines)) == (2, 1), job.output
    assert job.output.startswith(f"shard {shard}: got ")
    assert not (tmp_path / "runs").exists()
