"""What `jobs/ood.py` and `jobs/classify.py` leave on a real server, and what happens while it is away."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from drl_dist.common.errors import UserError
from drl_dist.jobs.classify.driver import classify_run
from drl_dist.jobs.classify.options import ClassifyOptions
from drl_dist.jobs.ood.driver import ood_run
from drl_dist.jobs.ood.options import OodOptions
from drl_dist.localhost import MlflowServer
from drl_dist.tracking import job_runs
from drl_dist.tracking.metrics import find_metric
from drl_dist.tracking.registry import register_checkpoint
from drl_dist.tracking.runs import open_run
from drl_dist.tracking.server.client import connect
from tests.helpers.labelled import write_images, write_model

pytestmark = pytest.mark.integration

Job = tuple[str, str, str, Callable[[Any], int], Callable[..., Any], dict[str, str]]

JOBS: list[Job] = [
    ("ood", "ood.json", "histogram.png", ood_run, OodOptions, {"other": "other"}),
    (
        "classification",
        "classify.json",
        "reliability.png",
        classify_run,
        ClassifyOptions,
        {"other": "other", "fit_data": "fit"},
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    write_model(folder / "model", "class")
    for name, first in (("data", 0), ("fit", 100), ("other", 200)):
        write_images(folder / name, range(first, first + 26))
    return folder


@pytest.fixture(scope="module")
def registered(folder: Path, mlflow_server: MlflowServer) -> tuple[MlflowClient, str]:
    """The client, and the run that trained the model."""
    client = connect(mlflow_server.uri)
    trained = open_run(mlflow_server.uri, "judged", "trained", {})
    assert register_checkpoint(client, "judged", trained, 7, folder / "model", {}) == 1
    return client, trained


def expected(kind: str, report: Mapping[str, Any]) -> dict[str, float]:
    if kind == "ood":
        return {"ood/auroc": report["auroc"]}
    names = ("accuracy", "mean_accuracy", "ece", "brier", "log_loss", "level")
    apart = report["out_of_distribution"]
    found = {name: report[name] for name in names} | {name: apart[name] for name in apart if name != "num_other"}
    return {f"classification/{name}": value for name, value in found.items()}


@pytest.mark.parametrize(("kind", "result", "picture", "run_job", "options", "sets"), JOBS, ids=["ood", "classify"])
def test_results_are_there_without_the_server_and_tied_to_the_model_when_it_is_back(
    kind: str,
    result: str,
    picture: str,
    run_job: Callable[[Any], int],
    options: Callable[..., Any],
    sets: dict[str, str],
    folder: Path,
    registered: tuple[MlflowClient, str],
    mlflow_server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client, trained = registered
    given = options(
        model="models:/judged@latest",
        data=str(folder / "data"),
        out=str(tmp_path / "out"),
        tracking_uri=mlflow_server.uri,
        **{name: str(folder / value) for name, value in sets.items()},
    )

    def away(*_: object, **__: object) -> str:
        raise UserError("MLflow server", got="no answer", expected="one", remedy="start it")

    def runs() -> list[Any]:
        experiment = client.get_experiment_by_name("judged")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'"))

    with monkeypatch.context() as patched:
        patched.setattr(job_runs, "log_job_run", away)
        for _ in range(2):
            assert run_job(given) == 0
            (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
            assert " is not logged to MLflow: MLflow server: got no answer" in warning
            assert warning.endswith("The same command logs it later.")
    before = (tmp_path / "out" / result).read_bytes()
    report = json.loads(before)
    assert runs() == []

    # Complete, it is only logged; after that nothing is done.
    assert run_job(given) == 0
    printed = capsys.readouterr().out
    assert "nothing to do" in printed and "linked to version 1 of judged" in printed
    (run,) = runs()
    assert run.info.run_id in printed and run.info.status == "FINISHED"
    assert run_job(given) == 0
    assert "logged" not in capsys.readouterr().out and len(runs()) == 1
    assert (tmp_path / "out" / result).read_bytes() == before

    assert run.data.tags["model"] == "models:/judged/1" and run.data.tags["trained_by"] == trained
    assert run.data.tags["data_url"] == given.data and run.data.tags["output_url"] == given.out
    assert run.data.params["data_fingerprint"] == report["data"]["fingerprint"] and run.data.params["seed"] == "0"
    numbers = expected(kind, report)
    assert run.data.metrics == numbers
    for name in numbers:
        assert [entry.step for entry in client.get_metric_history(run.info.run_id, name)] == [7]
        metric = find_metric(name)
        assert metric is not None and metric.runs == kind
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {picture, result} <= names
    tags = client.get_model_version("judged", "1").tags
    job = f"{kind}.{run.data.tags['drl_dist.run_name']}"
    assert tags[job] == run.info.run_id and tags[f"{job}.url"] == given.out
    for name, value in numbers.items():
        assert float(tags[f"{job}.{name.partition('/')[2]}"]) == value

    # Another folder is another run, which is logged at once; a model that is not registered has none.
    assert run_job(dataclasses.replace(given, out=str(tmp_path / "second"))) == 0
    assert "linked to version 1 of judged" in capsys.readouterr().out and len(runs()) == 2
    assert run_job(dataclasses.replace(given, model=str(folder / "model"), out=str(tmp_path / "third"))) == 0
    assert "logged to MLflow" not in capsys.readouterr().out and len(runs()) == 2
