"""Model versions on a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_dist.checkpoints.format import read_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.data.shards import encode_png
from drl_dist.localhost import MlflowServer
from drl_dist.tracking.job_runs import JobRun, is_logged, log_job_run
from drl_dist.tracking.registry import artifact_path, register_checkpoint, resolve_model
from drl_dist.tracking.runs import open_run
from drl_dist.tracking.server.client import client_of, connect

pytestmark = pytest.mark.integration


def test_register_resolve_and_sample(
    mlflow_server: MlflowServer, tmp_path: Path, make_checkpoint: Callable[[int], Path]
) -> None:
    uri = mlflow_server.uri
    client = connect(uri)
    run_id = open_run(uri, "registry", "run", {})
    metadata = {"run_name": "run", "checkpoint_url": "gs://bucket/run/checkpoint_000000100", "images_seen": "6400"}
    assert register_checkpoint(client, "registered", run_id, 100, make_checkpoint(100), metadata) == 1
    assert register_checkpoint(client, "registered", run_id, 200, make_checkpoint(200), metadata) == 2
    assert register_checkpoint(client, "registered", run_id, 200, make_checkpoint(200), metadata) == 2
    assert register_checkpoint(client, "registered", run_id, 100, make_checkpoint(100), metadata) == 1
    # A step that comes late must not become the latest version.
    assert register_checkpoint(client, "registered", run_id, 150, make_checkpoint(150), metadata) is None
    assert len(client.search_model_versions("name = 'registered'")) == 2
    version = client.get_model_version("registered", "1")
    assert version.tags.items() >= (metadata | {"step": "100"}).items() and len(version.tags["ema_sha256"]) == 64

    latest = resolve_model("models:/registered@latest", uri, tmp_path / "models")
    assert (latest.name, latest.version, latest.run_id, latest.step) == ("registered", 2, run_id, 200)
    checkpoint = read_checkpoint(latest.folder, ("ema",))
    assert torch.equal(checkpoint.tensors["ema"]["w"], torch.full((4, 4), 200.0)) and checkpoint.state.step == 200
    assert resolve_model("models:/registered/1", uri, tmp_path / "models").step == 100
    client.set_registered_model_alias("registered", "best", "1")
    assert resolve_model("models:/registered@best", uri).version == 1

    # A second run of the same preset makes further versions.
    other = open_run(uri, "registry", "run-b", {})
    assert register_checkpoint(client, "registered", other, 50, make_checkpoint(50), {}) == 3
    assert resolve_model("models:/registered@latest", uri).run_id == other

    run = JobRun(
        kind="samples",
        version=latest,
        name="registered-samples",
        params={"num_images": 16, "seed": 3},
        tags={"output_url": "gs://bucket/samples"},
        files={"samples.png": encode_png(np.zeros((1, 16, 16), np.uint8))},
        version_tags={"url": "gs://bucket/samples"},
    )
    assert not is_logged(uri, latest, "samples.registered-samples.url")
    for _ in range(2):
        sampled = log_job_run(uri, run)
    assert is_logged(uri, latest, "samples.registered-samples.url")
    assert not is_logged(uri, latest, "samples.registered.url")
    # No chart of images, which the run's parameters would fill.
    assert [item.path for item in client.list_artifacts(sampled)] == ["samples.png"]
    logged = client.get_run(sampled)
    assert "path=samples.png" in logged.data.tags["mlflow.note.content"]
    assert logged.info.status == "FINISHED" and logged.data.params == {"num_images": "16", "seed": "3"}
    assert (
        logged.data.tags["model"] == "models:/registered/2" and logged.data.tags["output_url"] == "gs://bucket/samples"
    )
    tags = client.get_model_version("registered", "2").tags
    assert (
        tags["samples.registered-samples"] == sampled
        and tags["samples.registered-samples.url"] == "gs://bucket/samples"
    )


def test_models_that_are_not_there_or_not_whole(
    mlflow_server: MlflowServer, tmp_path: Path, make_checkpoint: Callable[[int], Path]
) -> None:
    uri = mlflow_server.uri
    client = client_of(uri)
    run_id = open_run(uri, "registry", "run-c", {})
    register_checkpoint(client, "cifar10", run_id, 7, make_checkpoint(7), {})
    client.create_registered_model("bare")
    bare = "models:/bare@latest: got a registered model without versions, expected one with a version, which a checkpo"
    for reference, told in [
        ("models:/bare@latest", bare),
        ("models:/bare/1", "got a registered model without versions"),
        ("models:/cifra10@latest", "got no such model, expected one of the models .*cifar10"),
        ("models:/cifar10@best", "models:/cifar10/NUMBER from 1 to 1, or models:/cifar10@latest"),
        ("models:/cifar10@v1", "got no such version, expected models:/cifar10/NUMBER"),
        ("models:/cifar10/9", "cifar10/NUMBER from 1 to 1"),
        ("models:/cifar10", "models:/NAME@ALIAS"),
        ("cifar10", "models:/NAME@ALIAS"),
    ]:
        with pytest.raises(UserError, match=told):
            resolve_model(reference, uri)
    altered = make_checkpoint(8) / "ema.safetensors"
    altered.write_bytes(altered.read_bytes()[:-1] + b"\x01")
    client.log_artifact(run_id, str(altered), artifact_path(7))
    with pytest.raises(UserError, match="SHA-256"):
        resolve_model("models:/cifar10/1", uri, tmp_path / "models")
