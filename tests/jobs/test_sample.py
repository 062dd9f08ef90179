"""The sampling job: the same bytes whatever happens to workers, and mistakes told before anything is written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from drl_dist.common.errors import UserError
from drl_dist.data.index import ShardIndex, open_index, write_index
from drl_dist.data.shards import Sample, encode_png, pack_shard
from drl_dist.data.stream import ShardStream
from drl_dist.jobs.sample.driver import sample_run
from drl_dist.jobs.sample.options import SampleOptions, check_options
from drl_dist.localhost import MlflowServer, RayHead
from tests.helpers.forked import kill
from tests.support import ROOT, subprocess_environment, titled, wait_for

NUM_IMAGES, SHARD_SIZE = 84, 12
NUM_SHARDS = 7


@pytest.fixture(scope="module")
def three_cpus() -> Iterator[RayHead]:
    with RayHead(num_cpus=3, environment={"OMP_NUM_THREADS": "1"}) as head:
        yield head


def command(model: str | Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "jobs" / "sample.py"),
        "--model",
        str(model),
        "--out",
        str(out),
        "--num-images",
        str(NUM_IMAGES),
        "--shard-size",
        str(SHARD_SIZE),
        "--batch-size",
        "6",
        "--seed",
        "5",
        *more,
    ]


def sample(
    environment: Mapping[str, str], model: str | Path, out: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(model, out, *more), env=dict(environment), capture_output=True, text=True, timeout=300, check=False
    )


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def working_actors(head: RayHead) -> list[int]:
    """Process ids of the actors that are making a task."""
    return titled(head, "ray::SampleWorker.make")


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, three_cpus: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one worker makes when nothing happens."""
    out = tmp_path_factory.mktemp("samples") / "out"
    done = sample(subprocess_environment(three_cpus.environment()), checkpoint, out)
    assert done.returncode == 0, done.stderr
    assert f"{NUM_IMAGES}/{NUM_IMAGES} images" in done.stderr
    assert "images/s" in done.stderr
    return out


@pytest.mark.integration
def test_three_workers_one_killed_give_the_same_bytes(
    undisturbed: Path, checkpoint: Path, three_cpus: RayHead, tmp_path: Path
) -> None:
    environment = subprocess_environment(three_cpus.environment())
    with subprocess.Popen(
        command(checkpoint, tmp_path, "--num-workers", "3"),
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as job:
        wait_for(lambda: working_actors(three_cpus))
        os.kill(working_actors(three_cpus)[0], signal.SIGKILL)
        stdout, stderr = job.communicate(timeout=240)
    assert job.returncode == 0, stderr
    assert stdout.count("another one takes over") == 1, "the kill came too late to be a test"
    assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.integration
def test_a_killed_job_resumes_to_the_same_bytes(
    undisturbed: Path, checkpoint: Path, three_cpus: RayHead, tmp_path: Path
) -> None:
    environment = subprocess_environment(three_cpus.environment())
    with subprocess.Popen(
        command(checkpoint, tmp_path), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        wait_for(lambda: len(list((tmp_path / "_progress").glob("0*.json"))) >= 2)
        kill(job)
    assert not (tmp_path / "index.parquet").exists()
    finished = {
        path.stem: (tmp_path / f"tiny-generated-{path.stem}.tar").stat().st_mtime_ns
        for path in (tmp_path / "_progress").glob("0*.json")
    }

    other = sample(environment, checkpoint, tmp_path, "--seed", "6")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1), other.stderr
    assert "got other images (seed: 5 -> 6)" in other.stderr

    again = sample(environment, checkpoint, tmp_path, "--num-workers", "2")
    assert again.returncode == 0, again.stderr
    assert f"{NUM_SHARDS - len(finished)} of {NUM_SHARDS} shards to make" in again.stdout
    assert contents(tmp_path) == contents(undisturbed)
    for number, modified in finished.items():
        assert (tmp_path / f"tiny-generated-{number}.tar").stat().st_mtime_ns == modified

    complete = sample(environment, checkpoint, tmp_path)
    assert complete.returncode == 0
    assert f"already holds {NUM_IMAGES} images; nothing to do" in complete.stdout


@pytest.mark.integration
def test_fewer_images_are_extended_to_the_same_bytes(
    undisturbed: Path, checkpoint: Path, three_cpus: RayHead, tmp_path: Path
) -> None:
    environment = subprocess_environment(three_cpus.environment())
    # Two shards and a part of one; of options given twice the last counts.
    fewer = sample(environment, checkpoint, tmp_path, "--num-images", "30")
    assert fewer.returncode == 0, fewer.stderr
    full = [tmp_path / f"tiny-generated-{number:05d}.tar" for number in (0, 1)]
    modified = [path.stat().st_mtime_ns for path in full]
    more = sample(environment, checkpoint, tmp_path, "--num-workers", "2")
    assert more.returncode == 0, more.stderr
    assert f"5 of {NUM_SHARDS} shards to make" in more.stdout
    assert contents(tmp_path) == contents(undisturbed)
    assert [path.stat().st_mtime_ns for path in full] == modified
    refused = sample(environment, checkpoint, tmp_path, "--num-images", "30")
    assert (refused.returncode, refused.stderr) == (
        2,
        f"output {tmp_path}: got a folder that holds {NUM_IMAGES} of these images, expected at most 30; "
        f"use --num-images {NUM_IMAGES}, or choose another --out.\n",
    )
    assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.integration
def test_manifest_says_where_every_image_is(undisturbed: Path, checkpoint: Path) -> None:
    table = pq.read_table(undisturbed / "manifest.parquet")
    assert table.column_names == ["image_id", "shard", "member", "offset", "size", "sha256"]
    rows = table.to_pylist()
    assert [row["image_id"] for row in rows] == list(range(NUM_IMAGES))
    for row in rows:
        png = (undisturbed / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        assert hashlib.sha256(png).hexdigest() == row["sha256"]
        assert row["member"] == f"{row['image_id']:09d}.png"
        assert Image.open(io.BytesIO(png)).size == (8, 8)
    facts = json.loads(table.schema.metadata[b"drl_dist"])
    ema = hashlib.sha256((checkpoint / "ema.safetensors").read_bytes()).hexdigest()
    assert (facts["model"], facts["step"], facts["seed"], facts["noise_scale"]) == (str(checkpoint), 3, 5, 0.99)
    assert facts["ema_sha256"] == ema


@pytest.mark.integration
def test_shards_are_a_data_set(undisturbed: Path) -> None:
    shards = sorted(str(path) for path in undisturbed.glob("*.tar"))
    assert len(shards) == NUM_SHARDS
    plain = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert [entry["__key__"] for entry in plain] == [f"{image:09d}" for image in range(NUM_IMAGES)]
    index = open_index(str(undisturbed))
    assert (index.num_samples, index.resolution, index.channels) == (NUM_IMAGES, 8, 1)
    with ShardStream(index, seed=0, batch_size=NUM_IMAGES) as stream:
        streamed = next(iter(stream)).images.numpy()
    everything = {np.asarray(entry["png"].convert("L")).tobytes() for entry in plain}
    assert len(everything) == NUM_IMAGES, "equal images would make the other comparisons easy"
    assert {image[0].tobytes() for image in streamed} == everything


@pytest.mark.integration
def test_a_registered_model_is_sampled_and_linked(
    checkpoint: Path,
    ray_head: RayHead,
    mlflow_server: MlflowServer,
    server_environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from drl_dist.tracking import job_runs
    from drl_dist.tracking.registry import register_checkpoint
    from drl_dist.tracking.runs import open_run
    from drl_dist.tracking.server.client import connect

    client = connect(mlflow_server.uri)
    trained = open_run(mlflow_server.uri, "sampling", "trained", {})
    version = register_checkpoint(client, "tiny", trained, 3, checkpoint, {})
    done = sample(server_environment, "models:/tiny@latest", tmp_path / "out", "--num-images", "12")
    assert done.returncode == 0, done.stderr
    facts = json.loads(pq.read_schema(tmp_path / "out" / "manifest.parquet").metadata[b"drl_dist"])
    assert (facts["model"], facts["model_name"], facts["model_version"]) == (f"models:/tiny/{version}", "tiny", version)

    run_id = done.stdout.partition("logged to MLflow as run ")[2].partition(",")[0]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["model"] == f"models:/tiny/{version}"
    assert run.data.params["seed"] == "5"
    assert "samples.png" in [item.path for item in client.list_artifacts(run_id)]
    tags = client.get_model_version("tiny", str(version)).tags
    name = f"samples.{run.data.tags['drl_dist.run_name']}"
    assert tags[name] == run_id

    # As if the server had gone away before the images were logged: a warning, and the same command logs them later.
    client.delete_model_version_tag("tiny", str(version), f"{name}.url")
    options = SampleOptions(
        model="models:/tiny@latest",
        out=str(tmp_path / "out"),
        num_images=12,
        shard_size=SHARD_SIZE,
        batch_size=6,
        seed=5,
        tracking_uri=mlflow_server.uri,
    )

    def away(*_: object, **__: object) -> str:
        raise UserError("MLflow server", got="no answer", expected="one", remedy="start it")

    with monkeypatch.context() as patched:
        patched.setattr(job_runs, "log_job_run", away)
        assert sample_run(options) == 0
    assert "warning: the images are not logged to MLflow: MLflow server: got no answer" in capsys.readouterr().err
    assert sample_run(options) == 0
    assert f"logged to MLflow as run {run_id}" in capsys.readouterr().out
    assert f"{name}.url" in client.get_model_version("tiny", str(version)).tags
    assert sample_run(options) == 0
    assert "logged" not in capsys.readouterr().out

    missing = sample(server_environment, "models:/nonesuch@latest", tmp_path / "none")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1), missing.stderr
    assert "models:/nonesuch@latest" in missing.stderr
    assert "tiny" in missing.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.integration
def test_more_workers_than_the_cluster_has_are_told_before_anything_is_written(
    checkpoint: Path, three_cpus: RayHead, tmp_path: Path
) -> None:
    began = time.monotonic()
    done = sample(subprocess_environment(three_cpus.environment()), checkpoint, tmp_path / "out", "--num-workers", "9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("9 workers of 1 CPU: got a cluster with 3 CPU, expected 9 CPU;")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"out": "ftp://host/out"}, "storage URL: got ftp://host/out, expected a path"),
        ({"model": "/nonesuch"}, "checkpoint /nonesuch: got no complete checkpoint"),
        ({"model": "models:/tiny@latest", "tracking_uri": "http://127.0.0.1:9"}, "MLflow server http:.*:9: got no"),
        ({"real": "/nonesuch"}, "data /nonesuch: got an empty or missing folder"),
    ],
)
def test_what_is_not_there_is_told_before_a_cluster_is_asked(
    checkpoint: Path, tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    given = {"model": str(checkpoint), "out": str(tmp_path / "out")} | changed
    with pytest.raises(UserError, match=message):
        sample_run(SampleOptions(**given))  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


def test_real_images_must_fit_the_model(checkpoint: Path, tmp_path: Path) -> None:
    data, row = pack_shard("real-train-00000.tar", [Sample(0, encode_png(np.zeros((3, 16, 16), np.uint8)))])
    (tmp_path / row.name).write_bytes(data)
    write_index(ShardIndex(url=str(tmp_path), name="real", split="train", resolution=16, channels=3, shards=(row,)))
    options = SampleOptions(model=str(checkpoint), out=str(tmp_path / "out"), real=str(tmp_path))
    with pytest.raises(UserError, match="got 16x16 pixels with 3 channels, expected 8x8 pixels with 1 channel"):
        sample_run(options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_images": 0}, "--num-images: got 0, expected 1 to"),
        ({"num_workers": 0}, "--num-workers: got 0"),
        ({"seed": -1}, "--seed: got -1"),
        ({"shard_size": 0}, "--shard-size: got 0"),
        ({"num_images": 10**9}, "--shard-size: got 256, expected at least 10000"),
        ({"batch_size": 0}, "--batch-size: got 0"),
        ({"cpus_per_worker": 0}, "--cpus-per-worker: got 0"),
        ({"noise_scale": float("nan")}, "--noise-scale: got nan"),
        ({"num_chain_steps": -1}, "--num-chain-steps: got -1, expected at least 0"),
        ({"bound_fraction": 2.0}, "--bound-fraction: got 2.0, expected a number in"),
        ({"out": "samples"}, "--out: got samples, expected a URL or an absolute path"),
        ({"model": "digits"}, "--model: got digits, expected models:/NAME@latest"),
        ({"model": ""}, "got no --model"),
    ],
)
def test_impossible_options_are_refused(changed: dict[str, object], message: str) -> None:
    good = {"model": "models:/digits@latest", "out": "/samples"}
    check_options(SampleOptions(**good))
    with pytest.raises(UserError, match=message):
        check_options(SampleOptions(**good | changed))  # pyright: ignore[reportArgumentType]
