"""A sweep on the MLflow page: one run for the sweep, a child run for each trial, and the alias ``best``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from drl_dist.checkpoints.storage import StoredCheckpoint, fetch_checkpoint
from drl_dist.tracking.registry import register_checkpoint
from drl_dist.tracking.runs import RunStatus, experiment_named, open_run, run_named
from drl_dist.tracking.server.client import connect, user_errors

BEST = "best"
"""Alias of the model version that won its sweep."""
_TRIAL_TAG, _STATUS_TAG, _REASON_TAG = "sweep.trial", "sweep.status", "sweep.reason"


def open_sweep(uri: str | None, experiment: str, sweep_name: str, params: Mapping[str, Any]) -> str:
    """The id of the sweep's own run, made if there is none, and set RUNNING; errors as `open_run`."""
    return open_run(uri, experiment, sweep_name, params, {"kind": "sweep"})


def trial_tags(sweep_run: str, number: int, values: Mapping[str, Any]) -> dict[str, str]:
    """What makes a training run the child of a sweep's.

    Args:
        sweep_run: id of the sweep's run.
        number: of the trial.
        values: the trial's point, as texts.
    """
    tags = {f"sweep.{name}": str(value) for name, value in values.items()}
    return {MLFLOW_PARENT_RUN_ID: sweep_run, _TRIAL_TAG: str(number), "kind": "trial", **tags}


def trial_run(uri: str | None, experiment: str, run_name: str) -> str | None:
    """The id of a trial's run, None if there is none."""
    client = connect(uri)
    with user_errors(client.tracking_uri):
        run = run_named(client, experiment_named(client, experiment), run_name)
    return run.info.run_id if run else None


def end_trial(uri: str | None, experiment: str, run_name: str, status: str, reason: str, score: float | None) -> None:
    """Mark how a trial ended; a trial that is marked so already, or has no run, stays as it is.

    Args:
        experiment: MLflow experiment of the sweep.
        run_name: of the trial.
        status: finished, stopped, diverged or failed.
        reason: why.
        score: its last; logged as the metric ``sweep_score``, by which the page sorts children. None for no score.

    Raises:
        UserError: the server does not answer; what was logged may be logged again.
    """
    client = connect(uri)
    ended: RunStatus = "FINISHED" if status == "finished" else "KILLED" if status == "stopped" else "FAILED"
    with user_errors(client.tracking_uri):
        run = run_named(client, experiment_named(client, experiment), run_name)
        if run is None:
            return
        found = {name: run.data.tags.get(name) for name in (_STATUS_TAG, _REASON_TAG)}
        if run.info.status == ended and found == {_STATUS_TAG: status, _REASON_TAG: reason}:
            return
        if score is not None:
            client.log_metric(run.info.run_id, "sweep_score", score)
        client.set_terminated(run.info.run_id, ended)
        # Last, since they say that everything was logged.
        client.set_tag(run.info.run_id, _REASON_TAG, reason)
        client.set_tag(run.info.run_id, _STATUS_TAG, status)


def log_files(uri: str | None, run_id: str, files: Mapping[str, bytes], texts: Mapping[str, str]) -> None:
    """Files by name as artifacts of a run, and texts by name as tags of it."""
    client = connect(uri)
    with tempfile.TemporaryDirectory(prefix="drl-sweep-") as temporary, user_errors(client.tracking_uri):
        for name, data in files.items():
            path = Path(temporary) / name
            path.write_bytes(data)
            client.log_artifact(run_id, str(path))
        for name, text in texts.items():
            client.set_tag(run_id, name, text)


def mark_best(uri: str | None, model_name: str, run_id: str, checkpoint: StoredCheckpoint, run_name: str) -> int:
    """Give the version of a checkpoint the alias ``best``; it is registered first if it is not yet.

    Args:
        model_name: registered model of the sweep.
        run_id: of the trial's run.
        checkpoint: its last one.
        run_name: of the trial.

    Returns:
        the version.

    Raises:
        UserError: the server or the storage does not answer.
    """
    client = connect(uri)
    with tempfile.TemporaryDirectory(prefix="drl-best-") as temporary:
        folder = fetch_checkpoint(checkpoint.url, into=Path(temporary))
        metadata = {"run_name": run_name, "checkpoint_url": checkpoint.url}
        with user_errors(client.tracking_uri):
            version = register_checkpoint(client, model_name, run_id, checkpoint.step, folder, metadata)
            assert version is not None, "the last step of a run does not come late"
            client.set_registered_model_alias(model_name, BEST, str(version))
    return version
