"""A sweep continues while MLflow is away, and tells it later."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from drl_dist.checkpoints.storage import checkpoint_name
from drl_dist.common.errors import UserError
from drl_dist.jobs.sweep.driver import tell_now_or_later
from drl_dist.jobs.sweep.record import CURVE, OUTCOME, Outcome, Status, SweepFolder, write
from drl_dist.jobs.sweep.result import finish_sweep
from drl_dist.localhost import MlflowServer
from drl_dist.tracking.runs import open_run
from drl_dist.tracking.server import client
from drl_dist.tracking.server.answers import Trouble
from drl_dist.tracking.server.client import through_outage
from drl_dist.tracking.sweeps import open_sweep, trial_tags
from tests.sweeps.makers import curve, plan


def ended(status: Status, score: float) -> Outcome:
    return Outcome(status=status, reason="all steps are made", score=score, step=200, images_seen=1600)


@pytest.mark.integration
def test_what_the_server_missed_is_told_by_the_same_command(
    tmp_path: Path, make_checkpoint: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow").mkdir()
    with MlflowServer(tmp_path / "mlflow") as server:
        folder = SweepFolder(plan(tmp_path, "--tracking.uri", server.uri), "f")
        folder.check()
        folder.begin()
        sweep_id = open_sweep(server.uri, "drl_dist", "s", {})
        outcomes = [ended("finished", 2.0), ended("finished", 1.0), ended("stopped", 3.0)]
        for number, outcome in enumerate(outcomes):
            folder.propose(number, {"model.num_res_blocks": 1, "mcmc.level_scale": 1.0})
            open_run(server.uri, "drl_dist", folder.run_name(number), {}, trial_tags(sweep_id, number, {}))
            write(folder.trial_url(number), OUTCOME, outcome)
            write(folder.trial_url(number), CURVE, curve(outcome.score))
        shutil.copytree(make_checkpoint(200), Path(folder.trial_url(1)) / checkpoint_name(200))
        tell_now_or_later(folder, 0, outcomes[0])

        server.stop()
        tell_now_or_later(folder, 1, outcomes[1])
        assert "trial 1: how it ended is not on the MLflow page yet: MLflow server" in capsys.readouterr().err
        assert finish_sweep(folder, sweep_id, 100) == 1
        told = capsys.readouterr()
        assert "best: trial 1" in told.out and "ray job submit" in told.out
        assert "@best" not in told.out
        assert "warning: the result is not logged to MLflow" in told.err
        assert "The same command logs it later." in told.err
        assert (tmp_path / "s" / "table.csv").exists()

        server.start()
        assert finish_sweep(folder, sweep_id, 100) == 0
        assert "the best model is models:/digits-s@best (version 1)" in capsys.readouterr().out
        mlflow = MlflowClient(server.uri)
        experiment = mlflow.get_experiment_by_name("drl_dist")
        assert experiment is not None
        children = mlflow.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{sweep_id}'")
        shown = {
            run.info.run_name: (run.info.status, run.data.tags["sweep.status"], run.data.metrics["sweep_score"])
            for run in children
        }
        assert shown == {
            "s-0000": ("FINISHED", "finished", 2.0),
            "s-0001": ("FINISHED", "finished", 1.0),
            "s-0002": ("KILLED", "stopped", 3.0),
        }
        # Told once, though the sweep's end tells of all.
        (first,) = [run for run in children if run.info.run_name == "s-0000"]
        assert len(mlflow.get_metric_history(first.info.run_id, "sweep_score")) == 1
        assert mlflow.get_model_version_by_alias("digits-s", "best").tags["run_name"] == "s-0001"


def test_a_trial_that_starts_waits_for_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = UserError("MLflow server", got="no answer", expected="an answer", remedy="start it")
    away: list[Trouble | None] = [Trouble("no answer", "start it")]
    calls: list[int] = []
    monkeypatch.setattr(client, "probe", lambda uri: away[0])  # pyright: ignore[reportUnknownLambdaType]

    def call() -> str:
        calls.append(1)
        if len(calls) < 4:
            raise error
        return "run"

    assert through_outage("http://host", call, pause=0.01) == "run"
    assert capsys.readouterr().err.count("waiting for the server, for 12 h at most: MLflow server: got no answer") == 1

    # One that does not come back.
    calls.clear()
    with pytest.raises(UserError):
        through_outage("http://host", call, seconds=0.0, pause=0.01)
    # One that answers, and refuses: waiting does not mend it.
    calls.clear()
    away[0] = None
    with pytest.raises(UserError):
        through_outage("http://host", call, pause=0.01)
    assert len(calls) == 1
