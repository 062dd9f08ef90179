"""A sampling job on the MLflow page, tied to the model version it used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from drl_dist.tracking.client import connect, user_errors
from drl_dist.tracking.registry import ResolvedModel
from drl_dist.tracking.runs import describe_by_picture, finish_run, open_run


def link_samples(
    uri: str | None,
    model: ResolvedModel,
    *,
    run_name: str,
    params: Mapping[str, Any],
    grid: np.ndarray,
    output_url: str,
) -> str:
    """Log a finished sampling job as a run of the experiment that the model was trained in.

    The model version gets the tags ``samples.RUN_NAME`` (the run's id) and ``samples.RUN_NAME.url``; the run gets the
    tags ``model`` and ``output_url``. The same job logged again writes to the same run.

    Args:
        uri: the server, by default that of MLFLOW_TRACKING_URI.
        model: what was sampled from.
        run_name: the job's name.
        params: number of images, seed and the like.
        grid: (H, W, C) uint8, C = 1 or 3.
        output_url: where the sample shards are.

    Returns:
        the run's id.

    Raises:
        UserError: the server does not answer.
    """
    client = connect(uri)
    with user_errors(client.tracking_uri):
        trained_by = client.get_run(model.run_id)
        experiment = client.get_experiment(trained_by.info.experiment_id)
    tags = {
        "kind": "samples",
        "model": f"models:/{model.name}/{model.version}",
        "trained_by": model.run_id,
        "output_url": output_url,
    }
    run_id = open_run(uri, experiment.name, run_name, params, tags)
    with user_errors(client.tracking_uri):
        client.log_image(run_id, grid, artifact_file="samples.png")
        for name, text in ((f"samples.{run_name}", run_id), (f"samples.{run_name}.url", output_url)):
            client.set_model_version_tag(model.name, str(model.version), name, text)
    describe_by_picture(uri, run_id)
    finish_run(uri, run_id, "FINISHED")
    return run_id


def is_linked(uri: str | None, model: ResolvedModel, run_name: str) -> bool:
    """Whether a model version says that a sampling job was logged.

    Raises:
        UserError: the server does not answer, or has no such version.
    """
    client = connect(uri)
    with user_errors(client.tracking_uri):
        # The last tag that `link_samples` writes.
        return f"samples.{run_name}.url" in client.get_model_version(model.name, str(model.version)).tags
