"""Scores on a real server."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drl_dist.common.errors import UserError
from drl_dist.data.manifest import MANIFEST_FORMAT, MANIFEST_NAME, MANIFEST_VERSION
from drl_dist.jobs.evaluate import driver as scores_module
from drl_dist.jobs.evaluate.driver import evaluate_run
from drl_dist.jobs.evaluate.options import EvaluateOptions
from drl_dist.localhost import MlflowServer, free_ports
from drl_dist.tracking.job_runs import RegisteredVersion
from drl_dist.tracking.registry import register_checkpoint
from drl_dist.tracking.runs import open_run
from drl_dist.tracking.server.client import connect
from tests.data.sets import write_set
from tests.scores.tiny import tiny_network

pytestmark = pytest.mark.integration


def test_scores_are_tied_to_the_model_version(
    mlflow_server: MlflowServer,
    tmp_path: Path,
    make_checkpoint: Callable[[int], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = connect(mlflow_server.uri)
    trained = open_run(mlflow_server.uri, "scored", "trained", {})
    version = register_checkpoint(client, "scored", trained, 30, make_checkpoint(30), {})
    facts = FACTS | {"model_name": "scored", "model_version": version}
    options = compared(tmp_path, mlflow_server.uri)
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
        assert run.data.metrics[f"score/{name}"] == report[name]
        assert [entry.step for entry in client.get_metric_history(run.info.run_id, f"score/{name}")] == [30]
    tags = client.get_model_version("scored", str(version)).tags
    name = run.data.tags["drl_dist.run_name"]
    assert tags[f"scores.{name}"] == run.info.run_id
    assert float(tags[f"scores.{name}.fid"]) == report["fid"]

    # Computed again with another last digit, the newer scores count, also where they are smaller.
    kept = scores_module.score
    monkeypatch.setattr(
        scores_module,
        "score",
        lambda *features: dataclasses.replace(kept(*features), fid=math.nextafter(report["fid"], -math.inf)),
    )
    assert evaluate_run(options) == 0
    monkeypatch.setattr(scores_module, "score", kept)
    newer = json.loads((tmp_path / "scores.json").read_text())["fid"]
    assert newer < report["fid"]
    assert client.get_run(run.info.run_id).data.metrics["score/fid"] == newer
    assert float(client.get_model_version("scored", str(version)).tags[f"scores.{name}.fid"]) == newer
    assert len(client.get_metric_history(run.info.run_id, "score/kid")) == 1

    def write_origin(facts: Mapping[str, object]) -> None:
        write_manifest(tmp_path / "samples", facts)

    write_origin(facts | {"model_version": 77})
    told = told_without_logging(options, capsys)
    assert f"MLflow server {mlflow_server.uri}: got " in told and "77" in told
    write_origin(facts | {"ema_sha256": "0" * 64})
    assert "got other weights at" in told_without_logging(options, capsys)
    write_origin(facts | {"ema_sha256": client.get_model_version("scored", str(version)).tags["ema_sha256"]})
    assert evaluate_run(options) == 0 and "warning" not in capsys.readouterr().err


def test_scores_need_no_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = compared(tmp_path, None)
    for address in (f"http://127.0.0.1:{free_ports(1)[0]}", "sqlite:///mlflow.db", "http://me:secret@127.0.0.1:9"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert "secret" not in told_without_logging(options, capsys)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert evaluate_run(options) == 0 and "warning" not in capsys.readouterr().err
    told_without_logging(dataclasses.replace(options, tracking_uri=f"http://127.0.0.1:{free_ports(1)[0]}"), capsys)
    # What the command itself says is corrected before the work.
    with pytest.raises(UserError, match="got sqlite"):
        evaluate_run(dataclasses.replace(options, tracking_uri="sqlite:///mlflow.db"))

    # The server goes away while the scores are computed.
    monkeypatch.setattr(scores_module, "find_version", lambda *_: RegisteredVersion("scored", 1, 30, "0" * 32))
    away = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert "no answer" in told_without_logging(dataclasses.replace(options, tracking_uri=away), capsys)


def told_without_logging(options: EvaluateOptions, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that warns; the scores are written all the same."""
    assert options.json is not None
    Path(options.json).unlink(missing_ok=True)
    capsys.readouterr()
    assert evaluate_run(options) == 0
    assert json.loads(Path(options.json).read_text())["num_images"] == 25
    printed = capsys.readouterr()
    assert "FID" in printed.out and "logged to MLflow" not in printed.out
    (line,) = [line for line in printed.err.splitlines() if "warning" in line]
    assert line.startswith("warning: the scores are not logged to MLflow: ") and "The same command logs them" in line
    return line


FACTS = {"format": MANIFEST_FORMAT, "version": MANIFEST_VERSION, "model": "models:/scored/1", "step": 30}


def write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    schema = pa.schema([("image_id", pa.int64())], metadata={b"drl_dist": json.dumps(facts).encode()})
    pq.write_table(schema.empty_table(), folder / MANIFEST_NAME)


def compared(tmp_path: Path, uri: str | None) -> EvaluateOptions:
    """Two small sets, the first made by a registered model, and what compares them."""
    write_set(str(tmp_path / "samples"), (16, 9))
    write_set(str(tmp_path / "data"))
    write_manifest(tmp_path / "samples", FACTS | {"model_name": "scored", "model_version": 1})
    return EvaluateOptions(
        samples=str(tmp_path / "samples"),
        data=str(tmp_path / "data"),
        features=tiny_network(tmp_path),
        num_images=25,
        cache_dir=str(tmp_path / "cache"),
        json=str(tmp_path / "scores.json"),
        tracking_uri=uri,
    )
