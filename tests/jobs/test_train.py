"""The training job against real servers: Ray through `ray job submit`, MLflow, a storage emulator."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from drl_dist.checkpoints.files import PARTS, read_checkpoint
from drl_dist.checkpoints.remote import checkpoint_name, complete_checkpoints, fetch_checkpoint
from drl_dist.data.index import open_index
from drl_dist.localhost import MlflowServer, RayHead, processes, submit_job
from drl_dist.tracking.registry import resolve_model
from tests.data.published import encoded, photographs, write_lsun
from tests.gcs import GcsEmulator
from tests.support import ROOT, subprocess_environment

TINY = (
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
STEPS, EVERY = 120, 40

pytestmark = pytest.mark.integration


@dataclass
class Job:
    """How one ended."""

    status: int
    output: str
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)


def words(data: str | Path, storage: str | Path, name: str, *more: str) -> list[str]:
    return ["--data", str(data), "--storage", str(storage), "--run-name", name, *TINY, *more]


def run(environment: Mapping[str, str], options: list[str], door: str = "train_digits.py") -> Job:
    """The command itself, which joins the cluster that the environment names."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / door), *options],
        env=dict(environment),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=400,
        check=False,
    )
    return Job(done.returncode, done.stdout, time.monotonic() - began, done.stdout.splitlines())


def submit(head: RayHead, environment: Mapping[str, str], options: list[str], door: str = "train_digits.py") -> Job:
    """The command by way of ``ray job submit``."""
    lines: list[str] = []
    status = submit_job(
        head,
        ["python", f"jobs/{door}", *options],
        environment=environment,
        working_dir=ROOT,
        echo=lines.append,
        timeout_seconds=400,
    )
    return Job(status, "\n".join(lines), lines=lines)


def workers(head: RayHead) -> list[int]:
    """Process ids of the training workers."""
    found: list[int] = []
    for process in processes.tree(head.pid):
        try:
            title = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if title.startswith(b"ray::RayTrainWorker"):
            found.append(process.pid)
    return found


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def tracked(server: MlflowServer, name: str) -> Run:
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("drl_dist")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    assert len(runs) == 1
    return runs[0]


def assert_equal_checkpoints(one: Path, other: Path) -> None:
    first, second = read_checkpoint(one, PARTS), read_checkpoint(other, PARTS)
    assert first.state == second.state
    for part in PARTS:
        assert first.tensors[part].keys() == second.tensors[part].keys() != set()
        for name, tensor in first.tensors[part].items():
            assert torch.equal(tensor, second.tensors[part][name]), f"{part} {name}"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
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
            "100",
        ),
    )
    assert job.status == 0, job.output
    return job


def test_a_submitted_job_leaves_checkpoints(straight: Job, storage: Path) -> None:
    folder = storage / "straight"
    assert [stored.step for stored in complete_checkpoints(str(folder))] == [120, 80, 40]
    checkpoint = read_checkpoint(folder / checkpoint_name(STEPS), PARTS)
    assert (checkpoint.state.images_seen, checkpoint.state.next_position) == (8 * STEPS, 8 * STEPS)
    assert checkpoint.state.world_size == 2
    assert checkpoint.experiment.model.width == 8
    assert json.loads((folder / "experiment.json").read_text())["data_fingerprint"] == checkpoint.state.data_fingerprint
    assert not torch.equal(checkpoint.tensors["weights"]["stem.weight"], checkpoint.tensors["ema"]["stem.weight"])


def test_progress_is_told_with_rate_and_time_left(straight: Job) -> None:
    told = [line for line in straight.lines if re.search(r"step \d+/120: loss .* images/s, .* left$", line)]
    assert told
    assert "step 120/120" in told[-1]
    assert len([line for line in straight.lines if "step 1/120: under way" in line]) == 1


def test_the_tracker_knows_parameters_metrics_pictures_and_models(
    straight: Job, mlflow_server: MlflowServer, storage: Path
) -> None:
    client, told = MlflowClient(mlflow_server.uri), tracked(mlflow_server, "straight")
    assert told.info.status == "FINISHED"
    assert told.data.params["model.width"] == "8"
    assert told.data.params["num_workers"] == "2"
    for name in (
        "loss",
        "grad_norm",
        "learning_rate",
        "images_per_second",
        "chain_steps_per_second",
        "data_wait_fraction",
        "images_seen",
    ):
        history = client.get_metric_history(told.info.run_id, name)
        assert sorted(metric.step for metric in history) == list(range(1, STEPS + 1)), name
    for level in range(6):
        for name in ("log_density_pos", "log_density_neg", "log_density_gap", "displacement"):
            assert f"{name}/level_{level}" in told.data.metrics
    pictures = [item.path for item in client.list_artifacts(told.info.run_id, "images")]
    assert len([path for path in pictures if "samples" in path and path.endswith(".png")]) == 3
    assert len([path for path in pictures if "progression" in path and path.endswith(".png")]) == 3

    model = resolve_model("models:/digits@latest", mlflow_server.uri, storage / "resolved")
    assert model.step == STEPS
    stored = read_checkpoint(storage / "straight" / checkpoint_name(STEPS))
    registered = read_checkpoint(model.folder)
    assert registered.experiment == stored.experiment
    for name, tensor in stored.tensors["ema"].items():
        assert torch.equal(tensor, registered.tensors["ema"][name])


def test_the_same_command_again_has_nothing_to_do(
    straight: Job, digits: Path, storage: Path, server_environment: dict[str, str]
) -> None:
    again = run(
        server_environment,
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
        ),
    )
    assert again.status == 0, again.output
    assert "run straight has made its 120 steps" in again.output
    assert len(again.lines) == 1


def test_killed_workers_and_further_starts_change_nothing(
    straight: Job,
    ray_head: RayHead,
    digits: Path,
    storage: Path,
    mlflow_server: MlflowServer,
    server_environment: dict[str, str],
) -> None:
    options = words(
        digits,
        storage,
        "broken",
        "--num-workers",
        "2",
        "--checkpoint.every-steps",
        str(EVERY),
        "--tracking.sample-every-steps",
        "100",
    )
    first = storage / "broken" / checkpoint_name(EVERY)
    with subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "train_digits.py"), *options, "--train.num-steps", "80"],
        env=server_environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as job:
        wait_for(lambda: (first / "checksums.json").exists() or job.poll() is not None)
        os.kill(workers(ray_head)[-1], signal.SIGKILL)
        output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert "Ray Train restarts from the newest checkpoint" in output, "the kill came too late to be a test"
    assert "resuming after step 40" in output

    # A torn newest checkpoint, and Ray's own list torn as well: the one before counts.
    (storage / "broken" / checkpoint_name(80) / "ema.safetensors").unlink()
    (storage / "broken" / "checkpoint_manager_snapshot.json").write_text('{"ray_ver')
    again = run(server_environment, [*options, "--train.num-steps", str(STEPS)])
    assert again.status == 0, again.output
    assert "resuming after step 40" in again.output
    assert_equal_checkpoints(storage / "broken" / checkpoint_name(STEPS), storage / "straight" / checkpoint_name(STEPS))
    told = tracked(mlflow_server, "broken")
    assert (told.info.status, told.data.metrics["loss"]) == (
        "FINISHED",
        tracked(mlflow_server, "straight").data.metrics["loss"],
    )


def test_a_changed_experiment_is_refused(
    straight: Job, digits: Path, storage: Path, server_environment: dict[str, str]
) -> None:
    job = run(
        server_environment, words(digits, storage, "straight", "--model.num-res-blocks", "2", "--train.seed", "9")
    )
    assert (job.status, len(job.lines)) == (2, 1), job.output
    assert "changed fields model.num_res_blocks: 1 -> 2; train.seed: 0 -> 9" in job.output


def test_data_and_checkpoints_in_a_bucket(
    ray_head: RayHead, mlflow_server: MlflowServer, gcs_emulator: GcsEmulator, gcs_bucket: str, digits: Path
) -> None:
    from drl_dist.data.filesystem import Folder

    for path in digits.iterdir():
        Folder(f"{gcs_bucket}/digits").write(path.name, path.read_bytes())
    options = words(
        f"{gcs_bucket}/digits",
        f"{gcs_bucket}/runs",
        "bucket",
        "--checkpoint.every-steps",
        "2",
        "--checkpoint.keep",
        "2",
    )
    environment = mlflow_server.environment() | gcs_emulator.environment()
    job = submit(ray_head, environment, [*options, "--train.num-steps", "6"])
    assert job.status == 0, job.output
    run_url = f"{gcs_bucket}/runs/bucket"
    assert [stored.step for stored in complete_checkpoints(run_url)] == [6, 4]
    assert read_checkpoint(fetch_checkpoint(run_url, PARTS), PARTS).state.step == 6
    again = run(subprocess_environment(ray_head.environment(), environment), [*options, "--train.num-steps", "8"])
    assert again.status == 0, again.output
    assert f"resuming after step 6 from {run_url}/{checkpoint_name(6)}" in again.output
    assert [stored.step for stored in complete_checkpoints(run_url)] == [8, 6]


def test_lsun_photographs_at_128_pixels(
    ray_head: RayHead, mlflow_server: MlflowServer, storage: Path, tmp_path: Path
) -> None:
    write_lsun(
        tmp_path / "church_outdoor_train_lmdb",
        {
            f"{number:040x}".encode(): encoded(picture, "WEBP", quality=90)
            for number, picture in enumerate(photographs(12, 256, 340))
        },
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "datasets_prep.lsun",
            "--source",
            str(tmp_path),
            "--resolution",
            "128",
            "--out",
            str(tmp_path / "shards"),
            "--workers",
            "1",
        ],
        cwd=ROOT,
        env=subprocess_environment(),
        check=True,
        timeout=120,
    )
    options = words(
        tmp_path / "shards",
        storage,
        "church",
        "--num-workers",
        "2",
        "--train.num-steps",
        "2",
        "--train.batch-size",
        "2",
        "--tracking.num-samples",
        "2",
        "--mcmc.num-chain-steps",
        "2",
    )
    job = submit(ray_head, mlflow_server.environment(), options, "train_lsun128.py")
    assert job.status == 0, job.output
    checkpoint = read_checkpoint(fetch_checkpoint(str(storage / "church")), ("ema",))
    assert (checkpoint.experiment.preset, checkpoint.state.step) == ("lsun_church128", 2)
    assert resolve_model("models:/lsun_church128@latest", mlflow_server.uri, tmp_path / "model").step == 2
    sampling = ["--model", "models:/lsun_church128@latest", "--num-images", "2", "--out", str(tmp_path / "samples")]
    job = submit(ray_head, mlflow_server.environment(), [*sampling, "--real", str(tmp_path / "shards")], "sample.py")
    assert job.status == 0, job.output
    assert open_index(str(tmp_path / "samples")).resolution == 128


def test_a_damaged_image_ends_the_job_with_its_name(
    digits: Path, storage: Path, tmp_path: Path, mlflow_server: MlflowServer, server_environment: dict[str, str]
) -> None:
    for path in digits.iterdir():
        content = bytearray(path.read_bytes())
        if path.suffix == ".tar":
            content[len(content) // 2] ^= 1
        (tmp_path / path.name).write_bytes(content)
    job = run(server_environment, words(tmp_path, storage, "damaged", "--num-workers", "2"))
    assert job.status == 2, job.output
    assert "Traceback" not in job.output
    assert "restarts" not in job.output
    assert re.match(rf"shard {tmp_path}/\S+\.tar: got ", job.lines[-1]), job.output
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
        (("--use-gpu",), {}, "1 workers of 1 GPU: got a cluster with 0 GPU"),
        (("--tracking.uri", DEAD), {}, f"MLflow server {DEAD}: got no answer"),
        ((), {"MLFLOW_TRACKING_URI": ""}, "MLflow server: got no address"),
        (("--storage", "gs://nowhere/runs"), {"STORAGE_EMULATOR_HOST": DEAD}, "storage gs://nowhere/runs: got "),
        (("--storage", "ftp://host/runs"), {}, "storage URL: got 'ftp://host/runs'"),
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
    assert len(job.lines) == 1, job.output
    assert job.seconds < 60
    assert not (tmp_path / "runs").exists()


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
