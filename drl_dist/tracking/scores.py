"""Scores of a model's images on the MLflow page, tied to the model version that made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Metric

from drl_dist.errors import UserError
from drl_dist.tracking.client import connect, user_errors
from drl_dist.tracking.runs import finish_run, first_logged, open_run


@dataclass(frozen=True)
class ScoredModel:
    """A model version that the server knows."""

    name: str
    version: int
    step: int
    trained_by: str
    """Id of the run that trained it."""


def find_scored_model(uri: str | None, name: str, version: int) -> ScoredModel:
    """A registered model version, of which nothing is downloaded.

    Args:
        uri: the server, by default that of MLFLOW_TRACKING_URI.

    Raises:
        UserError: the server does not answer, or has no such version.
    """
    client = connect(uri)
    with user_errors(client.tracking_uri):
        found = client.get_model_version(name, str(version))
    if found.run_id is None or "step" not in found.tags:
        raise UserError(
            f"model models:/{name}/{version}",
            got="a version that was not made by training",
            expected="a registered checkpoint",
            remedy="score samples of another version, or leave the tracking server out",
        )
    return ScoredModel(name, version, int(found.tags["step"]), found.run_id)


def link_scores(
    uri: str | None,
    model: ScoredModel,
    *,
    run_name: str,
    scores: Mapping[str, float],
    params: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    """Log scores as a run of the experiment that the model was trained in.

    The model version gets a tag ``scores.RUN_NAME`` (the run's id) and a tag ``scores.RUN_NAME.SCORE`` for each score.
    The same scores logged again change nothing.

    Args:
        uri: the server, by default that of MLFLOW_TRACKING_URI.
        model: what made the images.
        run_name: the scores' name.
        scores: by metric name, logged at the model's step.
        params: feature network, number of images and the like.
        tags: further tags of the run.

    Returns:
        the run's id.

    Raises:
        UserError: the server does not answer.
    """
    client = connect(uri)
    with user_errors(client.tracking_uri):
        trained_by = client.get_run(model.trained_by)
        experiment = client.get_experiment(trained_by.info.experiment_id)
    own = {"kind": "scores", "model": f"models:/{model.name}/{model.version}", "trained_by": model.trained_by}
    run_id = open_run(uri, experiment.name, run_name, params, own | dict(tags))
    logged_at = first_logged(client, run_id)
    with user_errors(client.tracking_uri):
        client.log_batch(run_id, metrics=[Metric(name, value, logged_at, model.step) for name, value in scores.items()])
        client.set_model_version_tag(model.name, str(model.version), f"scores.{run_name}", run_id)
        for name, value in scores.items():
            # A metric's name may hold a slash, which a tag's may not everywhere.
            tag = f"scores.{run_name}.{name.rsplit('/', 1)[-1]}"
            client.set_model_version_tag(model.name, str(model.version), tag, f"{value:.6g}")
    finish_run(uri, run_id, "FINISHED")
    return run_id
