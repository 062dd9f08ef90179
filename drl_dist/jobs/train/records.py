"""Where the first rank's metrics, pictures and checkpoints are recorded: MLflow, files in the run's folder, or both."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drl_dist.common.images import Panel
from drl_dist.config.tree import NO_SERVER, RunConfig
from drl_dist.jobs.train.pictures import training_sheet
from drl_dist.jobs.train.task import WorkerTask
from drl_dist.tracking.files.run_files import RunFiles
from drl_dist.tracking.metrics import HEALTH_TAG

if TYPE_CHECKING:
    # It needs MLflow, which a run without a server need not have.
    from drl_dist.tracking.tracker import Tracker


@dataclass(frozen=True, kw_only=True)
class Records:
    """What a run is recorded in.

    Args:
        run: the run.
        model_name: registered model that checkpoints are versions of, where there is a server.
        tracker: tells the server; None without one.
        files: writes files; None where nothing but the server is told.
    """

    run: RunConfig
    model_name: str
    tracker: Tracker | None
    files: RunFiles | None

    def log_metrics(self, step: int, numbers: dict[str, float]) -> None:
        """The numbers of a step, by name."""
        if self.tracker is not None:
            self.tracker.log_metrics(step, numbers)
        if self.files is not None:
            self.files.log_metrics(step, numbers)

    def log_images(self, name: str, step: int, panel: Panel) -> None:
        """Images of a step, as a sheet with a caption."""
        png = training_sheet(self.run, step, panel)
        if self.tracker is not None:
            self.tracker.log_image(name, step, png)
        if self.files is not None:
            self.files.log_image(name, step, png)

    def register_checkpoint(self, step: int, folder: Path, metadata: Mapping[str, object]) -> None:
        """Make a checkpoint in a local folder a version of the model; nothing without a server, which keeps models."""
        if self.tracker is not None:
            self.tracker.register_checkpoint(self.model_name, step, folder, metadata)

    def tell_health(self, text: str) -> None:
        """How the run does, in words: a tag of the tracked run."""
        if self.tracker is not None:
            self.tracker.set_tags({HEALTH_TAG: text})

    def backlog(self) -> dict[str, float]:
        """What is still to be sent to MLflow, for `drl_dist.jobs.train.metrics.Exports`."""
        if self.tracker is None:
            return {}
        return {
            "spool_unsent_bytes": self.tracker.unsent_bytes,
            "mlflow_told_timestamp_seconds": self.tracker.told_at,
        }


def open_records(task: WorkerTask, step: int, stack: ExitStack, *, first_start: float) -> Records:
    """The records of a run; only for the first rank.

    Args:
        task: of this worker.
        step: steps made, with which the run continues.
        stack: closes them.
        first_start: when the run was started for the first time, in seconds since 1970.

    Raises:
        UserError: the run's folder cannot be written, or another process has the run's spool open.
    """
    run = task.run
    tracker, files = None, None
    has_files, has_events = run.tracking.uri == NO_SERVER, run.tracking.tensorboard
    if has_files or has_events:
        files = stack.enter_context(RunFiles(run.url, step, has_files=has_files, has_events=has_events))
    if not has_files:
        # Only here: the other ranks have no use for MLflow, and need not have it.
        from drl_dist.tracking.server.address import take_access
        from drl_dist.tracking.tracker import Tracker

        take_access(task.access)
        tracker = Tracker(run.tracking.uri, task.tracking_run, system_since=first_start)
        stack.callback(tracker.close)
    return Records(run=run, model_name=task.model_name, tracker=tracker, files=files)
