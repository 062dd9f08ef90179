"""Runs and metrics on a real server, also one that goes away."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from drl_dist.common.errors import UserError
from drl_dist.common.nested import flatten, to_dict
from drl_dist.config.presets import preset
from drl_dist.config.tree import RunConfig
from drl_dist.data.shards import encode_png
from drl_dist.localhost import MlflowServer, free_ports
from drl_dist.tracking.runs import finish_run, log_results, open_run
from drl_dist.tracking.server.client import client_of, connect
from drl_dist.tracking.sync import main, sync
from drl_dist.tracking.tracker import Tracker
from tests.support import ROOT, subprocess_environment

pytestmark = pytest.mark.integration


def params(**machine: object) -> dict[str, object]:
    return flatten(to_dict(RunConfig(experiment=preset("digits"), run_name="r", **machine)))  # pyright: ignore


def history(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def test_one_run_per_name_that_survives_restarts(mlflow_server: MlflowServer) -> None:
    uri = mlflow_server.uri
    client = client_of(uri)
    first = open_run(uri, "restarts", "run-1", params(num_workers=2), {"preset": "digits"})
    run = client.get_run(first)
    assert run.info.run_name == "run-1" and run.data.tags["preset"] == "digits"
    assert run.data.params["experiment.model.width"] == "32" and run.data.params["num_workers"] == "2"
    assert run.data.params.keys() == params().keys()

    finish_run(uri, first, "FAILED")
    assert client.get_run(first).info.status == "FAILED"
    assert open_run(uri, "restarts", "run-1", params(num_workers=4)) == first
    run = client.get_run(first)
    assert run.info.status == "RUNNING"
    assert run.data.params["num_workers"] == "2" and run.data.tags["resumed.num_workers"] == "4"
    assert [name for name in run.data.tags if name.startswith("resumed.")] == ["resumed.num_workers"]

    open_run(uri, "restarts", "run-1", params(num_workers=2))
    assert client.get_run(first).data.tags["resumed.num_workers"] == "2"
    assert open_run(uri, "restarts", "run-2", {}) != first
    experiment = client.get_experiment_by_name("restarts")
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 2


def test_long_params_are_whole_in_a_file_and_differ_where_they_differ(mlflow_server: MlflowServer) -> None:
    uri, client = mlflow_server.uri, client_of(mlflow_server.uri)
    scales = ", ".join(f"{0.1 + level / 7}" for level in range(1000))
    first = open_run(uri, "long", "run", {"scales": scales, "num_workers": 2})
    kept = client.get_run(first).data.params["scales"]
    assert len(kept) == 6000 and kept.startswith(scales[:5800]) and "whole in params.json" in kept
    whole = json.loads(Path(client.download_artifacts(first, "params.json")).read_text())
    assert whole == {"scales": scales, "num_workers": "2"}
    open_run(uri, "long", "run", {"scales": scales})
    assert not [name for name in client.get_run(first).data.tags if name.startswith("resumed.")]
    open_run(uri, "long", "run", {"scales": scales + ", 3"})
    assert "resumed.scales" in client.get_run(first).data.tags
    # A run of an earlier version holds no more than the beginning.
    old = client.create_run(client.get_run(first).info.experiment_id, tags={"drl_dist.run_name": "old"})
    client.log_param(old.info.run_id, "scales", scales[:6000])
    assert open_run(uri, "long", "old", {"scales": scales}) == old.info.run_id
    assert not [name for name in client.get_run(old.info.run_id).data.tags if name.startswith("resumed.")]


def test_the_newest_result_is_the_one_that_counts(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(mlflow_server.uri)
    run_id = open_run(mlflow_server.uri, "results", "run", {})
    smaller = math.nextafter(2.5, 0)
    for value in (2.5, 2.5, smaller, smaller):
        log_results(client, run_id, [("fid", value, 30), ("level", value, 1), ("level", 7.0, 2)])
    assert client.get_run(run_id).data.metrics == {"fid": smaller, "level": 7.0}
    assert history(client, run_id, "fid") == [(30, 2.5), (30, smaller)]
    assert [value for step, value in history(client, run_id, "level") if step == 2] == [7.0]
    # As on a machine whose clock is behind.
    monkeypatch.setattr("drl_dist.tracking.runs.time.time", lambda: 1.0e9)
    log_results(client, run_id, [("fid", 1.5, 30), ("never", math.inf, 30)])
    assert client.get_run(run_id).data.metrics == {"fid": 1.5, "level": 7.0}
    for _ in range(2):
        log_results(client, run_id, [("fid", -math.inf, 30)])
    assert math.isnan(client.get_run(run_id).data.metrics["fid"])
    assert len(history(client, run_id, "fid")) == 4


def test_an_outage_loses_and_doubles_nothing(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path / "server")
    with server:
        run_id = open_run(server.uri, "outage", "run", {})
        client = client_of(server.uri)
        tracker = Tracker(server.uri, run_id, tmp_path / "spools")
        for step in range(100):
            tracker.log_metrics(step, {"loss": float(step), "grad_norm": 1.0})
        assert tracker.flush(30)
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        away_since = time.time()
        for step in range(100, 700):
            tracker.log_metrics(step, {"loss": float(step), "grad_norm": 1.0})
        png = encode_png(np.zeros((3, 8, 8), np.uint8))
        tracker.log_image("samples", 700, png)
        assert not tracker.flush(3)
        assert away_since - 30 < tracker.told_at < away_since
        server.start()
        assert tracker.flush(60)
        assert away_since < tracker.told_at <= time.time()
        assert tracker.close("FINISHED")
        for name in ("main/loss", "main/grad_norm"):
            expected = [(step, float(step) if name == "main/loss" else 1.0) for step in range(700)]
            assert history(client, run_id, name) == expected
        assert client.get_run(run_id).info.status == "FINISHED"
        pictures = [item.path for item in client.list_artifacts(run_id, "pictures/samples")]
        assert pictures == ["pictures/samples/step_00000700.png"]
        # As it was given, with what the picture says of itself.
        for name in ("samples.png", "pictures/samples/step_00000700.png"):
            assert Path(client.download_artifacts(run_id, name, str(tmp_path))).read_bytes() == png
        assert list((tracker.spool / "payload").iterdir()) == []


def test_what_is_sent_twice_arrives_once(
    mlflow_server: MlflowServer, tmp_path: Path, make_checkpoint: Callable[[int], Path]
) -> None:
    run_id = open_run(mlflow_server.uri, "twice", "run", {})
    tracker = Tracker(mlflow_server.uri, run_id, tmp_path)
    for step in range(10):
        tracker.log_metrics(step, {"loss": float(step)})
    tracker.register_checkpoint("twice", 10, make_checkpoint(10), {})
    assert tracker.close()
    # As if the process had ended between the sending and the note of it.
    (tracker.spool / "sent.json").unlink()
    (tracker.spool / "payload").mkdir(exist_ok=True)
    again = Tracker(mlflow_server.uri, run_id, tmp_path)
    again.log_metrics(9, {"loss": 9.5})  # a step repeated after a restart
    assert again.close("KILLED")
    client = client_of(mlflow_server.uri)
    assert history(client, run_id, "main/loss") == [(step, float(step)) for step in range(10)] + [(9, 9.5)]
    assert len(client.search_model_versions("name = 'twice'")) == 1
    assert client.get_run(run_id).info.status == "KILLED"


def test_what_was_left_is_sent_first_by_the_next_start_or_by_sync(
    mlflow_server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = client_of(mlflow_server.uri)
    run_id = open_run(mlflow_server.uri, "left", "run", {})
    away = f"http://127.0.0.1:{free_ports(1)[0]}"

    def leave(steps: range) -> None:
        tracker = Tracker(away, run_id, tmp_path)
        for step in steps:
            tracker.log_metrics(step, {"loss": float(step)})
        assert not tracker.close("FAILED", deadline_seconds=0)

    leave(range(5))
    leave(range(5, 10))
    tracker = Tracker(mlflow_server.uri, run_id, tmp_path)
    tracker.log_metrics(10, {"loss": 10.0})
    assert tracker.flush(60)
    assert history(client, run_id, "main/loss") == [(step, float(step)) for step in range(11)]
    # The status that was left was told before this tracker's.
    assert client.get_run(run_id).info.status == "RUNNING"
    assert tracker.close()

    leave(range(11, 16))
    with pytest.raises(SystemExit) as ended:
        main(str(tmp_path / run_id))
    told = capsys.readouterr().err
    assert ended.value.code == 2 and away in told and "no answer" in told and "Traceback" not in told
    command = [sys.executable, "-m", "drl_dist.tracking.sync", "--spool", str(tmp_path / run_id)]
    subprocess.run([*command, "--uri", mlflow_server.uri], env=subprocess_environment(), cwd=ROOT, check=True)
    assert history(client, run_id, "main/loss")[11:] == [(step, float(step)) for step in range(11, 16)]
    assert client.get_run(run_id).info.status == "FAILED"
    assert sync(tmp_path / run_id, mlflow_server.uri) == 0
    with pytest.raises(UserError, match=r"got no run\.json"):
        sync(tmp_path / "elsewhere")


def test_non_finite_numbers_are_gaps_and_many_levels_fit(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run_id = open_run(mlflow_server.uri, "odd", "run", {})
    tracker = Tracker(mlflow_server.uri, run_id, tmp_path)
    tracker.log_metrics(1, {"loss": float("inf"), "grad_norm": float("nan")})
    tracker.log_metrics(2, {f"displacement/level_{t}": 1.0 for t in range(1500)} | {"loss": 2.0})
    assert tracker.close()
    assert not (tracker.spool / "refused.jsonl").exists()
    client = client_of(mlflow_server.uri)
    for name in ("main/loss", "main/grad_norm"):
        step, value = history(client, run_id, name)[0]
        assert step == 1 and math.isnan(value)
    assert len(client.get_run(run_id).data.metrics) == 1502


def test_records_that_the_server_refuses(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run_id = open_run(mlflow_server.uri, "refused", "run", {})
    client = client_of(mlflow_server.uri)
    tracker = Tracker(mlflow_server.uri, run_id, tmp_path / "spools")
    assert tracker.flush(30)
    client.delete_run(run_id)
    tracker.log_metrics(1, {"loss": 1.0})
    assert tracker.close(deadline_seconds=30)
    assert "must be in the 'active' state" in (tracker.spool / "refused.jsonl").read_text()


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "http://192.0.2.255:5000"])
def test_an_unreachable_server_is_told_in_seconds(address: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"MLflow server http.*: got no answer .*; start the server"):
        open_run(address.format(port=free_ports(1)[0]), "e", "run", {})
    assert time.monotonic() - began < 20


def test_what_is_no_mlflow_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=re.escape("got sqlite:///x.db, expected an http")):
        open_run("sqlite:///x.db", "e", "run", {})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="got no address"):
        open_run(None, "e", "run", {})
    page = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", port := str(free_ports(1)[0])],
        cwd=ROOT / "docs",
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(2)
        with pytest.raises(UserError, match=r"not an MLflow server|no answer"):
            open_run(f"http://127.0.0.1:{port}", "e", "run", {})
    finally:
        page.kill()
        page.wait()


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_password_in_the_address_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    address = "http://someone:planted-secret@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address if by_environment else "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"a user or password in it, at 127\.0\.0\.1:9, expected an address without"
    ) as caught:
        connect(None if by_environment else address)
    assert "planted-secret" not in str(caught.value)


def test_the_load_of_the_machine_is_logged_from_its_first_interval(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drl_dist.tracking.tracker.SYSTEM_SECONDS", 1.0)
    monkeypatch.setattr("drl_dist.tracking.tracker.SEND_SECONDS", 0.1)
    client, run_id = client_of(mlflow_server.uri), open_run(mlflow_server.uri, "load", "run", {})
    tracker = Tracker(mlflow_server.uri, run_id, tmp_path, system_since=time.time() - 100)
    name = "system/cpu_utilization_percentage"
    deadline = time.monotonic() + 60
    while not (found := history(client, run_id, name)) and time.monotonic() < deadline:
        # A processor's load of this process alone is above 0.
        sum(range(200_000))
    assert tracker.close()
    step, load = found[0]
    assert 100 <= step < 170 and 0 < load <= 100
    values = client.get_run(run_id).data.metrics
    assert 0 < values["system/system_memory_usage_percentage"] <= 100
    assert any(one.startswith("system/disk") for one in values) and any("network" in one for one in values)
