"""``status``, ``compare`` and ``delete`` of runs that an MLflow server tracks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from drl_dist.checkpoints.run_record import write_record
from drl_dist.checkpoints.run_status import RunStatus, write_status
from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.console.command import run
from drl_dist.localhost import MlflowServer
from drl_dist.tracking.page import alias_of
from drl_dist.tracking.runs import finish_run, open_run
from drl_dist.tracking.server.client import client_of
from drl_dist.tracking.tracker import Tracker
from tests.helpers import checkpoints

pytestmark = pytest.mark.integration


def make(
    server: MlflowServer, storage: Path, name: str, make_checkpoint: Callable[[int], Path], *, seed: int = 0
) -> str:
    """A tracked run with its folder and two model versions; its id."""
    folder = storage / name
    experiment = preset("digits")
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, num_steps=100, seed=seed))
    write_record(str(folder), experiment, "f" * 64)
    run_id = open_run(server.uri, "console", name, {})
    # As an earlier version called it.
    client_of(server.uri).log_metric(run_id, "loss", 9.0, timestamp=1000, step=3)
    tracker = Tracker(server.uri, run_id, storage / "spools", system_since=time.time() - 5)
    for step in range(1, 11):
        speed = {"images_per_second": 16.0, "step_seconds": 0.5, "recent_step_seconds": 2.0}
        tracker.log_metrics(step, {"loss": 1 / step, "health": 0.0} | speed)
    tracker.set_tags({"drl_dist.health": "data-bound: steps wait"})
    for step in (5, 10):
        metadata = {"run_name": name, "images_seen": 8 * step}
        tracker.register_checkpoint("console", step, make_checkpoint(step), metadata)
    assert tracker.close("RUNNING")
    checkpoints.add(folder, 10)
    status = RunStatus(
        state="running", since=time.time(), starts=1, worker_starts=1, tracking_uri=server.uri, tracking_run=run_id
    )
    write_status(str(folder), status)
    return run_id


def test_tracked_runs_are_shown_compared_and_deleted_with_their_versions_alone(
    mlflow_server: MlflowServer,
    tmp_path: Path,
    make_checkpoint: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = client_of(mlflow_server.uri)
    gone = make(mlflow_server, tmp_path, "gone.1", make_checkpoint)
    kept = make(mlflow_server, tmp_path, "kept", make_checkpoint, seed=3)
    model = client.get_registered_model("console")
    assert model.aliases == {"gone-1": "2", "kept": "4"} and "jobs/sample.py" in (model.description or "")

    assert run(["status", str(tmp_path / "gone.1")]) == 0
    first, steps, newest, health, page = capsys.readouterr().out.splitlines()
    assert first.startswith("run gone.1 (digits): running, for ")
    assert steps.startswith("step 10 of 100 (10.0%), 16.0 images/s, 3 min left, last sign ")
    assert newest.startswith("newest checkpoint: step 10, ") and health == "health: data-bound: steps wait"
    assert page.startswith(f"page: {mlflow_server.uri}/#/experiments/") and gone in page

    words = ["compare", str(tmp_path / "gone.1"), str(tmp_path / "kept"), "--out", str(tmp_path / "both.png")]
    assert run(words) == 0
    assert "train.seed" in capsys.readouterr().out and (tmp_path / "both.png").exists()

    with pytest.raises(UserError, match="got a run that is at work"):
        run(["delete", str(tmp_path / "gone.1"), "--yes"])
    finish_run(mlflow_server.uri, gone, "FINISHED")
    folder = str(tmp_path / "gone.1")
    write_status(
        folder,
        RunStatus(state="finished", since=time.time(), starts=1, tracking_uri="http://127.0.0.1:9", tracking_run=gone),
    )
    # Nothing is removed while the server does not answer.
    with pytest.raises(UserError, match=r"MLflow server http://127\.0\.0\.1:9: got .*--keep-tracking"):
        run(["delete", folder, "--yes"])
    capsys.readouterr()
    assert run(["delete", folder, "--yes", "--tracking-uri", mlflow_server.uri]) == 0
    said = capsys.readouterr().out
    assert "the model versions console/" in said and f"removed console/2, console/1, MLflow run {gone}" in said
    assert client.get_run(gone).info.lifecycle_stage == "deleted"
    assert client.get_run(kept).info.lifecycle_stage == "active"
    assert {version.run_id for version in client.search_model_versions("name = 'console'")} == {kept}
    with pytest.raises(MlflowException):
        client.get_model_version("console", "1")
    assert not (tmp_path / "gone.1").exists() and (tmp_path / "kept/experiment.json").exists()


def test_only_names_that_mlflow_takes_become_aliases() -> None:
    assert alias_of("church-1.b") == "church-1-b" and alias_of("a_b") == "a_b"
    assert [alias_of(name) for name in ("latest", "best", "v3", "3", "", "a b", "V12")] == [None] * 7
