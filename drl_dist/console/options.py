"""The options of the commands of ``python -m drl_dist``; importing them needs no torch and no storage library."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from drl_dist.common.validation import refuse_broken

DEFAULT_FOLDER = "var/local"


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Options of ``python -m drl_dist down``."""

    folder: str = DEFAULT_FOLDER
    """Where `up` keeps MLflow's data and the record of what it started."""


@dataclass(frozen=True, kw_only=True)
class UpOptions(FolderOptions):
    """Options of ``python -m drl_dist up``."""

    num_cpus: int | None = None
    """CPUs that Ray schedules; by default those of this machine that this process may use."""
    mlflow_port: int | None = None
    """Port of the MLflow server; by default the one that it had before, or a free one."""
    dashboard_port: int | None = None
    """Port of the Ray head's page, to which jobs are submitted; by default a free one."""


def check_up(options: UpOptions) -> None:
    """Raise `UserError` for options with which nothing can be started."""
    ports = {"--mlflow-port": options.mlflow_port, "--dashboard-port": options.dashboard_port}
    refuse_broken(
        [
            ("--num-cpus", options.num_cpus, "at least 1", options.num_cpus is None or options.num_cpus >= 1),
            *((name, port, "1024 to 65535", port is None or 1024 <= port <= 65535) for name, port in ports.items()),
            (
                "--dashboard-port",
                options.dashboard_port,
                "another port than --mlflow-port",
                options.dashboard_port is None or options.dashboard_port != options.mlflow_port,
            ),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class StatusOptions(FolderOptions):
    """Options of ``python -m drl_dist status``."""

    run: tyro.conf.Positional[str] = ""
    """Folder of a run, STORAGE/RUN_NAME, on any storage; without it, what `up` runs is shown."""
    tracking_uri: str | None = None
    """MLflow server; by default the one that the run's folder names, or the environment's MLFLOW_TRACKING_URI."""


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Options of ``python -m drl_dist list``."""

    storage: tyro.conf.Positional[str] = ""
    """Storage URL of the runs."""
    tracking_uri: str | None = None
    """MLflow server; by default the ones that the runs' folders name, or the environment's MLFLOW_TRACKING_URI."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of ``python -m drl_dist compare``."""

    run: tyro.conf.Positional[str] = ""
    """Folder of a run, STORAGE/RUN_NAME."""
    other: tyro.conf.Positional[str] = ""
    """Folder of another run."""
    out: str = "compare.png"
    """PNG file to write."""
    tracking_uri: str | None = None
    """MLflow server; by default the ones that the runs' folders name, or the environment's MLFLOW_TRACKING_URI."""


@dataclass(frozen=True, kw_only=True)
class DeleteOptions:
    """Options of ``python -m drl_dist delete``."""

    run: tyro.conf.Positional[str] = ""
    """Folder of a run, STORAGE/RUN_NAME."""
    yes: bool = False
    """Do not ask; needed where there is no terminal."""
    keep_tracking: bool = False
    """Leave the MLflow run and the model versions as they are."""
    tracking_uri: str | None = None
    """MLflow server; by default the one that the run's folder names, or the environment's MLFLOW_TRACKING_URI."""
