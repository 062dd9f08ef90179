"""A likelihood job on the MLflow page, tied to the model version that it is about."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drl_dist.config.tree import flatten
from drl_dist.likelihood.report import Report
from drl_dist.tracking.client import connect, user_errors
from drl_dist.tracking.registry import ResolvedModel
from drl_dist.tracking.runs import finish_run, log_results, open_run


def link_likelihood(
    uri: str | None,
    model: ResolvedModel,
    *,
    run_name: str,
    report: Report,
    params: Mapping[str, Any],
    artifacts: Mapping[str, bytes],
    tags: Mapping[str, str],
) -> str:
    """Log a likelihood as a run of the experiment that the model was trained in.

    Numbers of the whole are logged at the model's step, those of levels with the level as their step. The model version
    gets a tag ``likelihood.RUN_NAME`` (the run's id) and tags with bits per dimension. The same job logged again,
    or killed while it logged and run again, changes nothing.

    Args:
        uri: the server, by default that of MLFLOW_TRACKING_URI.
        model: what the likelihood is of.
        run_name: the job's name.
        report: what was found.
        params: number of chains, seed and the like; nested dictionaries are flattened.
        artifacts: files by name.
        tags: further tags of the run.

    Returns:
        the run's id.

    Raises:
        UserError: the server does not answer.
    """
    client = connect(uri)
    with user_errors(client.tracking_uri):
        trained_by = client.get_run(model.run_id)
        experiment = client.get_experiment(trained_by.info.experiment_id)
    own = {"kind": "likelihood", "model": f"models:/{model.name}/{model.version}", "trained_by": model.run_id}
    run_id = open_run(uri, experiment.name, run_name, flatten(dict(params)), own | dict(tags))
    whole, by_level = whole_metrics(report), level_metrics(report)
    results = [(name, value, model.step) for name, value in whole.items()]
    log_results(client, run_id, [*results, *((name, value, level) for name, level, value in by_level)])
    with user_errors(client.tracking_uri), tempfile.TemporaryDirectory(prefix="drl-likelihood-") as folder:
        for name, data in artifacts.items():
            (Path(folder) / name).write_bytes(data)
            client.log_artifact(run_id, str(Path(folder) / name))
        version = str(model.version)
        client.set_model_version_tag(model.name, version, f"likelihood.{run_name}", run_id)
        for name in ("bits_per_dim_lower", "bits_per_dim_upper"):
            client.set_model_version_tag(
                model.name, version, f"likelihood.{run_name}.{name}", repr(whole[f"likelihood/{name}"])
            )
    finish_run(uri, run_id, "FINISHED")
    return run_id


def whole_metrics(report: Report) -> dict[str, float]:
    """Metrics of the longest chains."""
    best = report.estimates[-1]
    return {
        "likelihood/log_z_lower": best.lower.log_z,
        "likelihood/log_z_upper": best.upper.log_z,
        "likelihood/ess_lower": best.lower.effective_sample_size,
        "likelihood/ess_upper": best.upper.effective_sample_size,
        "likelihood/bits_per_dim_lower": report.at_data.lower,
        "likelihood/bits_per_dim_upper": report.at_data.upper,
        "likelihood/bits_per_dim_x0_lower": report.at_x_0.lower,
        "likelihood/bits_per_dim_x0_upper": report.at_x_0.upper,
        "likelihood/bits_per_dim_x0_annealed": best.annealed_bits_per_dim,
    }


def level_metrics(report: Report) -> list[tuple[str, int, float]]:
    """Metrics of the longest chains by level: name, level, value."""
    return [
        (f"likelihood/{name}_{side}", row.level, value)
        for side, bound in (("lower", report.estimates[-1].lower), ("upper", report.estimates[-1].upper))
        for row in bound.levels
        for name, value in (
            ("level_log_z_ratio", row.log_z_ratio),
            ("level_ess", row.effective_sample_size),
            ("level_acceptance_rate", row.acceptance_rate),
        )
    ]
