"""A tracked run looked up by its id: its newest numbers, its curves, and its removal with its model versions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from drl_dist.common.errors import UserError
from drl_dist.tracking.runs import RUN_NAME_TAG, pictures_page
from drl_dist.tracking.server.client import connect, every, is_missing, user_errors


@dataclass(frozen=True, kw_only=True)
class Latest:
    """A metric's newest number."""

    value: float
    step: int
    time: float
    """When it was logged, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What the server knows of a run without its curves."""

    run_id: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    latest: dict[str, Latest]
    """By metric."""
    tags: dict[str, str]
    page: str
    """Address of its newest picture."""


def look_up(uri: str | None, run_id: str) -> TrackedRun | None:
    """A run; None if the server knows none of this id, or it was deleted.

    Raises:
        UserError: the server does not answer.
    """
    client = connect(uri)
    with user_errors(client.tracking_uri):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if is_missing(error):
                return None
            raise
        if run.info.lifecycle_stage != "active":
            return None
        # The numbers alone, as `run.data.metrics` has them, lack step and time.
        latest = {
            metric.key: Latest(value=metric.value, step=metric.step, time=metric.timestamp / 1000)
            for metric in run.data._metric_objs
        }
    return TrackedRun(
        run_id=run_id,
        status=run.info.status,
        latest=latest,
        tags=dict(run.data.tags),
        page=pictures_page(client.tracking_uri, run.info.experiment_id, run_id),
    )


def find_run(uri: str | None, run_name: str) -> str | None:
    """The id of the only run of a name on a server; None if there is none, or several in different experiments.

    Raises:
        UserError: the server does not answer.
    """
    client = connect(uri)
    with user_errors(client.tracking_uri):
        experiments = every(lambda token: client.search_experiments(page_token=token))
        ids = [experiment.experiment_id for experiment in experiments]
        chosen = f"tags.`{RUN_NAME_TAG}` = '{run_name}'"
        found = client.search_runs(ids, chosen, ViewType.ACTIVE_ONLY, max_results=2)
    return found[0].info.run_id if len(found) == 1 else None


def curves_of(uri: str | None, run_id: str, names: Iterable[str]) -> dict[str, dict[int, float]]:
    """Metrics by step, of a step logged twice the newest number; NaN where it was not finite.

    Raises:
        UserError: the server does not answer, or does not know the run.
    """
    client = connect(uri)
    found: dict[str, dict[int, float]] = {}
    with user_errors(client.tracking_uri):
        for name in names:
            logged = sorted(client.get_metric_history(run_id, name), key=lambda metric: metric.timestamp)
            found[name] = {metric.step: metric.value for metric in logged}
    return found


def versions_of(uri: str | None, run_id: str) -> list[str]:
    """The model versions that a run made, as ``NAME/VERSION``; errors as `curves_of`."""
    client = connect(uri)
    with user_errors(client.tracking_uri):
        return [f"{version.name}/{version.version}" for version in _versions(client, run_id)]


def delete_tracked(uri: str | None, run_id: str) -> None:
    """Remove a run's model versions, then the run; MLflow keeps deleted runs until ``mlflow gc``.

    Raises:
        UserError: the server does not answer, or refuses; a repeated call removes what is left.
    """
    client = connect(uri)
    with user_errors(client.tracking_uri):
        for version in _versions(client, run_id):
            if version.run_id != run_id:
                raise UserError(
                    f"model version {version.name}/{version.version}",
                    got=f"a version of run {version.run_id}",
                    expected=f"one of run {run_id}",
                    remedy="tell the maintainers of the MLflow server",
                )
            client.delete_model_version(version.name, str(version.version))
        client.delete_run(run_id)


def _versions(client: MlflowClient, run_id: str) -> list[ModelVersion]:
    chosen = f"run_id = '{run_id}'"
    return list(every(lambda token: client.search_model_versions(chosen, page_token=token)))
