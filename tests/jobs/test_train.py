"""The training job against real servers: Ray through `ray job submit`, MLflow, a storage emulator."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from drl_dist.checkpoints.format import PARTS, read_checkpoint
from drl_dist.checkpoints.run_status import read_status
from drl_dist.checkpoints.storage import checkpoint_name, complete_checkpoints, fetch_checkpoint
from drl_dist.data.index import open_index
from drl_dist.jobs.train.options import parse_train_options
from drl_dist.jobs.train.single_device import train_on_one_device
from drl_dist.localhost import MlflowServer, RayHead
from drl_dist.tracking.files.table import read_table
from drl_dist.tracking.registry import resolve_model
from tests.data.published import encoded, photographs, write_lsun
from tests.gcs import GcsEmulator
from tests.jobs.training_jobs import (
    EVERY,
    LABELLED,
    STEPS,
    Job,
    assert_equal_checkpoints,
    run,
    submit,
    survive_a_kill,
    tracked,
    words,
)
from tests.support import ROOT, flip_bit, subprocess_environment

pytestmark = pytest.mark.integration


def test_a_submitted_job_leaves_checkpoints(straight: Job, storage: Path) -> None:
    folder = storage / "straight"
    assert [stored.step for stored in complete_checkpoints(str(folder))] == [STEPS, 2 * EVERY, EVERY]
    checkpoint = read_checkpoint(folder / checkpoint_name(STEPS), PARTS)
    assert (checkpoint.state.images_seen, checkpoint.state.next_position) == (8 * STEPS, 8 * STEPS)
    assert checkpoint.state.world_size == 2
    # The standard deviation of the digits about zero, which the command leaves to the data.
    assert (checkpoint.experiment.model.width, checkpoint.experiment.model.data_std) == (8, 0.8466)
    assert checkpoint.experiment.condition.names == tuple(map(str, range(10)))
    assert bool(checkpoint.tensors["ema"]["condition.table"].any())
    assert json.loads((folder / "experiment.json").read_text())["data_fingerprint"] == checkpoint.state.data_fingerprint
    assert not torch.equal(checkpoint.tensors["weights"]["stem.weight"], checkpoint.tensors["ema"]["stem.weight"])


def test_progress_is_told_with_rate_and_time_left(straight: Job) -> None:
    told = [line for line in straight.lines if re.search(rf"step \d+/{STEPS}: loss .* images/s, .*(%|left)$", line)]
    assert told
    # At the end no time is left.
    assert f"step {STEPS}/{STEPS}" in told[-1] and "left" not in told[-1]
    assert all(line.endswith(" left") for line in told[:-1])
    assert len([line for line in straight.lines if f"step 1/{STEPS}: under way" in line]) == 1


def test_the_tracker_knows_parameters_metrics_pictures_and_models(
    straight: Job, mlflow_server: MlflowServer, storage: Path
) -> None:
    client, told = MlflowClient(mlflow_server.uri), tracked(mlflow_server, "straight")
    assert told.info.status == "FINISHED"
    assert told.data.params["model.width"] == "8"
    assert told.data.params["num_workers"] == "2"
    for name in (
        "main/loss",
        "main/grad_norm",
        "main/learning_rate",
        "speed/images_per_second",
        "speed/chain_steps_per_second",
        "speed/data_wait_fraction",
        "main/images_seen",
    ):
        history = client.get_metric_history(told.info.run_id, name)
        assert sorted(metric.step for metric in history) == list(range(1, STEPS + 1)), name
    assert {"pixels/saturated_fraction", "pixels/data_saturated_fraction", "main/health"} < told.data.metrics.keys()
    tags = told.data.tags
    assert tags["mlflow.source.name"] == "train_digits.py" and tags["mlflow.user"]
    (data,) = told.inputs.dataset_inputs
    assert data.dataset.name == "digits-train" and told.data.params["data_fingerprint"].startswith(data.dataset.digest)
    assert "samples" in client.get_experiment(told.info.experiment_id).tags["mlflow.note.content"]
    newest = client.get_model_version_by_alias("digits", "straight")
    assert newest.run_id == told.info.run_id and f"after step {STEPS}" in newest.description
    for level in range(6):
        for name in ("log_density_pos", "log_density_neg", "log_density_gap", "displacement"):
            assert f"values_per_level/{name}/level_{level}" in told.data.metrics
    for name in ("samples", "progression"):
        assert len(client.list_artifacts(told.info.run_id, f"pictures/{name}")) == 3

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
            "--model.data-std",
            "none",
            *LABELLED,
        ),
    )
    assert again.status == 0, again.output
    assert f"run straight has made its {STEPS} steps" in again.output
    assert len(again.lines) == 1


def test_checkpoints_of_two_workers_when_they_pay_change_no_number(
    straight: Job, digits: Path, storage: Path, server_environment: dict[str, str]
) -> None:
    # Machines of such a short life want a checkpoint as soon as the one before is in storage.
    asked = ("--checkpoint.every-steps", "auto", "--checkpoint.machine-lifetime-hours", "1e-9")
    kept = ("--checkpoint.keep", "99", "--num-workers", "2", "--train.num-steps", str(STEPS))
    more = ("--tracking.sample-every-steps", "75", "--model.data-std", "none", *LABELLED)
    job = run(server_environment, words(digits, storage, "auto", *asked, *kept, *more))
    assert job.status == 0, job.output
    newest, *earlier = (stored.step for stored in complete_checkpoints(str(storage / "auto")))
    assert newest == STEPS and set(earlier) - {EVERY, 2 * EVERY}
    assert_equal_checkpoints(*(storage / name / checkpoint_name(STEPS) for name in ("straight", "auto")))


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
        "75",
        *LABELLED,
    )
    first = storage / "broken" / checkpoint_name(EVERY)
    survive_a_kill(ray_head, server_environment, [*options, "--train.num-steps", str(2 * EVERY)], first)

    # A damaged newest checkpoint, and Ray's own list torn as well: the one before counts.
    flip_bit(storage / "broken" / checkpoint_name(2 * EVERY) / "ema.safetensors")
    (storage / "broken" / "checkpoint_manager_snapshot.json").write_text('{"ray_ver')
    again = run(server_environment, [*options, "--train.num-steps", str(STEPS)])
    assert again.status == 0, again.output
    assert (
        f"passing over checkpoint {storage}/broken/{checkpoint_name(2 * EVERY)}: ema.safetensors has SHA-256"
        in again.output
    )
    assert f"resuming after step {EVERY}" in again.output
    assert_equal_checkpoints(storage / "broken" / checkpoint_name(STEPS), storage / "straight" / checkpoint_name(STEPS))
    told = tracked(mlflow_server, "broken")
    assert (told.info.status, told.data.metrics["main/loss"]) == (
        "FINISHED",
        tracked(mlflow_server, "straight").data.metrics["main/loss"],
    )


def test_it_resumes_what_training_without_ray_began(
    digits: Path, tmp_path: Path, mlflow_server: MlflowServer, server_environment: dict[str, str]
) -> None:
    def options(name: str, steps: int) -> list[str]:
        return words(digits, tmp_path, name, "--checkpoint.every-steps", "3", "--train.num-steps", str(steps))

    def alone(name: str, steps: int) -> None:
        words_alone = [*options(name, steps), "--without-ray", "--engine.threads-per-worker", "1"]
        assert train_on_one_device(parse_train_options("digits", words_alone)[0]) == 0

    alone("whole", 6)
    alone("half", 3)
    rest = run(server_environment, options("half", 6))
    assert rest.status == 0, rest.output
    assert "resuming after step 3" in rest.output
    assert_equal_checkpoints(tmp_path / "half" / checkpoint_name(6), tmp_path / "whole" / checkpoint_name(6))
    assert tracked(mlflow_server, "half").info.status == "FINISHED"


def test_a_changed_experiment_is_refused(
    straight: Job, digits: Path, storage: Path, server_environment: dict[str, str]
) -> None:
    changed = [*LABELLED, "--model.data-std", "none", "--model.num-res-blocks", "2", "--train.seed", "9"]
    job = run(server_environment, words(digits, storage, "straight", *changed))
    assert (job.status, len(job.lines)) == (2, 1), job.output
    assert "changed fields model.num_res_blocks: 1 -> 2; train.seed: 0 -> 9" in job.output


def test_a_run_goes_on_from_another_with_other_settings(
    straight: Job, digits: Path, storage: Path, mlflow_server: MlflowServer, server_environment: dict[str, str]
) -> None:
    start = storage / "straight" / checkpoint_name(EVERY)
    more = [
        *LABELLED,
        "--start-from",
        str(start),
        "--model.data-std",
        "none",
        "--optim.learning-rate",
        "1e-6",
        "--train.num-steps",
        str(EVERY + 2),
    ]
    job = run(server_environment, words(digits, storage, "fork", *more))
    assert job.status == 0, job.output
    assert f"run fork: starting from {start}, 1 worker," in job.output
    before, after = (
        read_checkpoint(folder, PARTS) for folder in (start, storage / "fork" / checkpoint_name(EVERY + 2))
    )
    assert (after.state.step, after.state.next_position) == (EVERY + 2, before.state.next_position + 2 * 8)
    # Two steps of Adam at this learning rate: nearly the same weights, but not the same.
    changes = [
        float((after.tensors["weights"][name] - value).abs().max())
        for name, value in before.tensors["weights"].items()
        if name.endswith(".weight")
    ]
    assert 0 < max(changes) < 1e-4
    assert tracked(mlflow_server, "fork").data.params["start_from"] == str(start)
    again = run(server_environment, words(digits, storage, "fork", *more))
    assert (again.status, len(again.lines)) == (0, 1), again.output
    assert f"has made its {EVERY + 2} steps" in again.output


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
    # On without a server: metrics and pictures go to the bucket.
    alone = subprocess_environment(ray_head.environment(), gcs_emulator.environment())
    more = ("--train.num-steps", "8", "--tracking.uri", "none", "--tracking.tensorboard")
    again = run(alone, [*options, *more])
    assert again.status == 0, again.output
    assert f"resuming after step 6 from {run_url}/{checkpoint_name(6)}" in again.output
    assert again.lines[-1].endswith(f"metrics and samples in {run_url}") and "model " not in again.lines[-1]
    assert [stored.step for stored in complete_checkpoints(run_url)] == [8, 6]
    assert read_table(run_url, ["loss"])["step"].to_pylist() == [7, 8]
    assert {"samples.png", "curves.png", "run_status.json"} <= Folder(run_url).sizes().keys()
    assert Folder(f"{run_url}/tensorboard").sizes() and Folder(f"{run_url}/pictures/samples").sizes()
    status = read_status(run_url)
    assert status is not None and (status.state, status.starts, status.worker_starts) == ("finished", 2, 2)
    assert tracked(mlflow_server, "bucket").data.metrics["main/images_seen"] == 6 * 8


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
