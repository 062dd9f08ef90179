"""Scores of a model's images on the MLflow page, tied to the model version that made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drl_dist.common.errors import UserError
from drl_dist.tracking.client import connect, user_errors
from drl_dist.tracking.option import address_option
from drl_dist.tracking.runs import finish_run, log_results, open_run


@dataclass(frozen=True)
class ScoredModel:
    """A model version that the server knows."""

    name: str
    version: int
    step: int
    trained_by: str
    """Id of the run that trained it."""


def find_scored_model(uri: str | None, name: str, version: int, ema_sha256: str | None) -> ScoredModel:
    """A registered model version, of which nothing is downloaded.

    Args:
        uri: the server, by default that of MLFLOW_TRACKING_URI.
        ema_sha256: of the weights that made the images, None if that is not known.

    Raises:
        UserError: the server does not answer, has no such version, or has another model by that name.
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
    # Two servers count their versions each for itself.
    if ema_sha256 is not None and found.tags.get("ema_sha256", ema_sha256) != ema_sha256:
        raise UserError(
            f"model models:/{name}/{version}",
            got=f"other weights at {client.tracking_uri}",
            expected="the weights that made the samples",
            remedy=f"give the server that knows them as {address_option()}",
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
    The same scores logged again change nothing; scores that were computed again and differ take the place of the
    earlier ones, as metrics and as tags.

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
    log_results(client, run_id, [(name, value, model.step) for name, value in scores.items()])
    with user_errors(client.tracking_uri):
        client.set_model_version_tag(model.name, str(model.version), f"scores.{run_name}", run_id)
        for name, value in scores.items():
            # A metric's name may hold a slash, which a tag's may not everywhere.
            tag = f"scores.{run_name}.{name.rsplit('/', 1)[-1]}"
            client.set_model_version_tag(model.name, str(model.version), tag, repr(value))
    finish_run(uri, run_id, "FINISHED")
    return run_id
