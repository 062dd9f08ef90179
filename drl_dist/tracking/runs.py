"""One MLflow run per run name, whatever number of times it is started."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from drl_dist.errors import UserError
from drl_dist.tracking.client import chunks, connect, is_duplicate, user_errors

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

RUN_NAME_TAG = "drl_dist.run_name"
# MLflow's own limits.
_PER_REQUEST, _PARAM_LENGTH, _TAG_LENGTH = 100, 6000, 8000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}")


def open_run(
    uri: str | None, experiment: str, run_name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> str:
    """The id of the run of this name, made if there is none, and set RUNNING.

    Params keep the values of the run's first start. A field that differs at a later start (another number of workers,
    say) is told by a tag ``resumed.FIELD`` that holds the newest value.

    Args:
        uri: the server, by default that of MLFLOW_TRACKING_URI.
        experiment: MLflow experiment; made if there is none.
        run_name: unique within the experiment.
        params: the flattened config, ``{"model.width": 128, ...}``.
        tags: further tags, written at every start.

    Raises:
        UserError: the server does not answer, or does not take this.
    """
    if not _NAME.fullmatch(run_name):
        raise UserError(
            "run name",
            got=repr(run_name),
            expected="letters, digits, dots, dashes and underscores",
            remedy="choose another --run-name",
        )
    client = connect(uri)
    with user_errors(client.tracking_uri):
        experiment_id = experiment_named(client, experiment)
        run = run_named(client, experiment_id, run_name)
        if run is None:
            # Created with its name tag, so that a lost answer is found by the search of the next start.
            run = client.create_run(experiment_id, run_name=run_name, tags={RUN_NAME_TAG: run_name})
        _write(client, run, params, tags or {})
        client.update_run(run.info.run_id, status="RUNNING")
    return run.info.run_id


def finish_run(uri: str | None, run_id: str, status: RunStatus) -> None:
    """End a run; a run that ended otherwise before gets the new status.

    Raises:
        UserError: the server does not answer.
    """
    client = connect(uri)
    with user_errors(client.tracking_uri):
        client.set_terminated(run_id, status)


def set_tags(uri: str | None, run_id: str, tags: Mapping[str, str]) -> None:
    """Write tags of a run, cut to what MLflow takes.

    Raises:
        UserError: the server does not answer.
    """
    client = connect(uri)
    with user_errors(client.tracking_uri):
        client.log_batch(run_id, tags=[RunTag(name, text[:_TAG_LENGTH]) for name, text in tags.items()])


def first_logged(client: MlflowClient, run_id: str) -> int:
    """When a run was first started, in milliseconds: the time under which results are logged that are logged at once.

    MLflow keeps one row for each metric, step and time; logged again under the same time, a result is not doubled.

    Raises:
        UserError: the server does not answer.
    """
    with user_errors(client.tracking_uri):
        return client.get_run(run_id).info.start_time


def experiment_named(client: MlflowClient, name: str) -> str:
    """Id of the experiment, made if there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            # Otherwise the page opens in its language-model view.
            return client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"})
        except MlflowException as error:
            if not is_duplicate(error):
                raise
            found = client.get_experiment_by_name(name)
    assert found is not None
    if found.lifecycle_stage != "active":
        raise UserError(
            f"MLflow experiment {name}",
            got="a deleted experiment",
            expected="an active one",
            remedy="restore it or choose another --tracking.experiment",
        )
    return found.experiment_id


def run_named(client: MlflowClient, experiment_id: str, run_name: str) -> Run | None:
    """The oldest run that carries the name, None if there is none."""
    found = client.search_runs(
        [experiment_id],
        f"tags.`{RUN_NAME_TAG}` = '{run_name}'",
        ViewType.ACTIVE_ONLY,
        max_results=1,
        order_by=["attributes.start_time ASC"],
    )
    return found[0] if found else None


def _write(client: MlflowClient, run: Run, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    known = run.data.params
    texts = {name: str(value)[:_PARAM_LENGTH] for name, value in params.items()}
    new = [Param(name, text) for name, text in texts.items() if name not in known]
    changed = {f"resumed.{name}": text for name, text in texts.items() if known.get(name, text) != text}
    # A field set back to its first value must not keep the tag of the value in between.
    stale = {name for name in run.data.tags if name.startswith("resumed.")} - changed.keys()
    changed |= {name: known[name.removeprefix("resumed.")] for name in stale if name.removeprefix("resumed.") in known}
    entries = [RunTag(name, str(text)[:_TAG_LENGTH]) for name, text in {**changed, **tags}.items()]
    for part in chunks(new, _PER_REQUEST):
        client.log_batch(run.info.run_id, params=part)
    for part in chunks(entries, _PER_REQUEST):
        client.log_batch(run.info.run_id, tags=part)


@contextmanager
def status_kept(uri: str, run_id: str) -> Iterator[None]:
    """End a tracked run as the body ends. A stop of the job is an exception here, and leaves seconds."""
    status: RunStatus = "KILLED"
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        try:
            finish_run(uri, run_id, status)
        except UserError as error:
            print(f"the tracked run could not be set {status}: {error}", file=sys.stderr, flush=True)
