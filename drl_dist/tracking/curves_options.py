"""Options of ``jobs/curves.py``; importing them needs no MLflow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CurvesOptions:
    """Options of ``jobs/curves.py``."""

    run_name: str = ""
    """The run."""
    out: str = "curves.png"
    """PNG file to write."""
    metrics: tuple[str, ...] = ()
    """Metrics, a panel each; those of all levels together are named without their level. By default those of loss,
    log_density_gap, displacement, noise_error and grad_norm that the run's objective has."""
    experiment: str = "drl_dist"
    """MLflow experiment of the run."""
    uri: str | None = None
    """MLflow server; by default the environment's MLFLOW_TRACKING_URI."""
