"""One MLflow run per run name, however often it is started."""

from __future__ import annotations

import hashlib
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from drl_dist.common.errors import UserError
from drl_dist.tracking.server.client import chunks, connect, is_duplicate, user_errors

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

RUN_NAME_TAG = "drl_dist.run_name"
NOTE_TAG = MLFLOW_RUN_NOTE
"""Tag that MLflow's page shows as the description of a run."""
# MLflow's own limits.
_PER_REQUEST, _METRICS_PER_REQUEST, _PARAM_LENGTH, _TAG_LENGTH = 100, 1000, 6000, 8000
# Without it the page opens on the side that was last chosen in the browser, at first that for language models.
_SIDE = "workflowType=machine_learning"
WHOLE_PARAMS = "params.json"
"""Artifact with the params of a run as they are, where some are too long for MLflow's own."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}")


def open_run(
    uri: str | None, experiment: str, run_name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> str:
    """The id of the run of this name, made if there is none, and set RUNNING.

    Params keep the values of the run's first start. A field that differs at a later start (another number of workers,
    say) is recorded in a tag ``resumed.FIELD`` that holds the newest value. Where one is longer than MLflow takes, its
    end is replaced by a checksum, and all are in the artifact ``params.json``.

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


def log_results(client: MlflowClient, run_id: str, results: Iterable[tuple[str, float, int]]) -> None:
    """Log results that may be logged again by a later start; the newest is what MLflow shows.

    A result that the run has already is not logged again. One that differs, if only in its last digit, gets a later
    time than the one before it: of equal times MLflow would show the largest value, whichever is newer.

    Args:
        results: name, value, step. A value that is not finite is a gap, and is not logged where there was no other.

    Raises:
        UserError: the server does not answer, or does not take this.
    """
    wanted = list(results)
    now = math.floor(time.time() * 1000)
    metrics: list[Metric] = []
    with user_errors(client.tracking_uri):
        newest: dict[tuple[str, int], Metric] = {}
        for name in sorted({name for name, _, _ in wanted}):
            for metric in client.get_metric_history(run_id, name):
                known = newest.get((name, metric.step))
                if known is None or (metric.timestamp, metric.value) > (known.timestamp, known.value):
                    newest[name, metric.step] = metric
        for name, number, step in wanted:
            # MLflow would store infinity as the largest float.
            value = number if math.isfinite(number) else math.nan
            known = newest.get((name, step))
            if known is None and not math.isnan(value):
                metrics.append(Metric(name, value, now, step))
            elif known is not None and known.value != value and not (math.isnan(known.value) and math.isnan(value)):
                # This machine's clock may be behind the one that logged before.
                metrics.append(Metric(name, value, max(now, known.timestamp + 1), step))
        for part in chunks(metrics, _METRICS_PER_REQUEST):
            client.log_batch(run_id, metrics=part)


def pictures_page(uri: str, experiment_id: str, run_id: str, name: str = "samples") -> str:
    """The address of the newest picture of a run, on the page's side for model training."""
    return f"{uri}/{_page(experiment_id, run_id)}/artifacts/{name}.png?{_SIDE}"


def describe_by_picture(uri: str | None, run_id: str, name: str = "samples") -> str:
    """Make the newest picture of a run its description, unless it has one; the picture's page.

    The page's charts of images are of no use for it: they put all parameters of the run before the image.

    Raises:
        UserError: the server does not answer.
    """
    client = connect(uri)
    with user_errors(client.tracking_uri):
        run = client.get_run(run_id)
        experiment_id = run.info.experiment_id
        if MLFLOW_RUN_NOTE not in run.data.tags:
            page = _page(experiment_id, run_id)
            # The links first: what is higher than about a hundred pixels is cut until somebody asks for more.
            text = (
                f"[{name} in full size]({page}/artifacts/{name}.png?{_SIDE}), "
                f"[charts]({page}/model-metrics?{_SIDE})\n\n"
                f"![{name}](get-artifact?path={name}.png&run_uuid={run_id})"
            )
            client.set_tag(run_id, MLFLOW_RUN_NOTE, text)
    return pictures_page(client.tracking_uri, experiment_id, run_id, name)


def _page(experiment_id: str, run_id: str) -> str:
    return f"#/experiments/{experiment_id}/runs/{run_id}"


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
    whole = {name: str(value) for name, value in params.items()}
    texts = {name: _fitting(text, _PARAM_LENGTH) for name, text in whole.items()}
    new = [Param(name, text) for name, text in texts.items() if name not in known]
    # Runs of earlier versions hold the beginnings of long ones.
    changed = {
        f"resumed.{name}": text
        for name, text in texts.items()
        if known.get(name, text) not in (text, whole[name][:_PARAM_LENGTH])
    }
    if any(len(text) > _PARAM_LENGTH for text in whole.values()):
        client.log_dict(run.info.run_id, whole, WHOLE_PARAMS)
    # A field set back to its first value must not keep the tag of the value in between.
    stale = {name for name in run.data.tags if name.startswith("resumed.")} - changed.keys()
    changed |= {name: known[name.removeprefix("resumed.")] for name in stale if name.removeprefix("resumed.") in known}
    entries = [RunTag(name, str(text)[:_TAG_LENGTH]) for name, text in {**changed, **tags}.items()]
    for part in chunks(new, _PER_REQUEST):
        client.log_batch(run.info.run_id, params=part)
    for part in chunks(entries, _PER_REQUEST):
        client.log_batch(run.info.run_id, tags=part)


def _fitting(text: str, length: int) -> str:
    """A text that is no longer, and that differs wherever the whole one does."""
    if len(text) <= length:
        return text
    end = f"... ({len(text)} characters, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}; whole in {WHOLE_PARAMS})"
    return text[: length - len(end)] + end


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
