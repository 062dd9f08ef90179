"""Scores on a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drl_dist.data.manifest import MANIFEST_FORMAT, MANIFEST_NAME, MANIFEST_VERSION
from drl_dist.errors import UserError
from drl_dist.localhost import MlflowServer
from drl_dist.scores.evaluate import evaluate_run
from drl_dist.scores.options import EvaluateOptions
from drl_dist.tracking.client import connect
from drl_dist.tracking.registry import register_checkpoint
from drl_dist.tracking.runs import open_run
from tests.data.sets import write_set
from tests.scores.tiny import tiny_network

pytestmark = pytest.mark.integration


def test_scores_are_tied_to_the_model_version(
    mlflow_server: MlflowServer, tmp_path: Path, make_checkpoint: Callable[[int], Path]
) -> None:
    client = connect(mlflow_server.uri)
    trained = open_run(mlflow_server.uri, "scored", "trained", {})
    version = register_checkpoint(client, "scored", trained, 30, make_checkpoint(30), {})
    facts = {"format": MANIFEST_FORMAT, "version": MANIFEST_VERSION, "model": f"models:/scored/{version}", "step": 30}
    facts |= {"model_name": "scored", "model_version": version}
    write_set(str(tmp_path / "samples"), (16, 9))
    write_set(str(tmp_path / "data"))
    schema = pa.schema([("image_id", pa.int64())], metadata={b"drl_dist": json.dumps(facts).encode()})
    pq.write_table(schema.empty_table(), tmp_path / "samples" / MANIFEST_NAME)
    options = EvaluateOptions(
        samples=str(tmp_path / "samples"),
        data=str(tmp_path / "data"),
        features=tiny_network(tmp_path),
        num_images=25,
        cache_dir=str(tmp_path / "cache"),
        json=str(tmp_path / "scores.json"),
        tracking_uri=mlflow_server.uri,
    )
    for _ in range(2):
        assert evaluate_run(options) == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    experiment = client.get_experiment_by_name("scored")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'scores'")
    assert run.info.status == "FINISHED"
    assert run.data.tags["model"] == f"models:/scored/{version}" and run.data.tags["trained_by"] == trained
    assert run.data.tags["data_url"] == options.data
    assert run.data.params["num_images"] == "25" and run.data.params["features"] == options.features
    for name in ("fid", "kid", "kid_std", "inception_score", "inception_score_std"):
        assert run.data.metrics[f"score/{name}"] == pytest.approx(report[name])
        assert [entry.step for entry in client.get_metric_history(run.info.run_id, f"score/{name}")] == [30]
    tags = client.get_model_version("scored", str(version)).tags
    name = run.data.tags["drl_dist.run_name"]
    assert tags[f"scores.{name}"] == run.info.run_id
    assert float(tags[f"scores.{name}.fid"]) == pytest.approx(report["fid"], rel=1e-5)

    pq.write_table(
        schema.with_metadata({b"drl_dist": json.dumps(facts | {"model_version": 77}).encode()}).empty_table(),
        tmp_path / "samples" / MANIFEST_NAME,
    )
    with pytest.raises(UserError, match=f"MLflow server {mlflow_server.uri}: got .*77"):
        evaluate_run(options)
