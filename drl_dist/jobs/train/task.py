"""The task of a training worker, from the driver. Importing it needs no torch: driver and controller go without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from drl_dist.config.tree import RunConfig
from drl_dist.jobs.train.stop import KeyInStore, StopFlag

if TYPE_CHECKING:
    from torch import Tensor

    from drl_dist.training.loop import StepReport
    from drl_dist.training.state import TrainState

Log = Callable[[int, dict[str, float]], None]
"""Logs the numbers of a step."""


class ScoreCallback(Protocol):
    """A callback of one rank that another job hands in; it also sees generated images and their scores.

    It is called behind the callback that scores, and before the one that writes checkpoints: a checkpoint that is
    complete has its scores with it.
    """

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """As `drl_dist.training.loop.Listener.on_step`."""
        ...

    def see_images(self, step: int, images_seen: int, images: Tensor) -> None:
        """Generated images, uint8 (B, C, H, W), on every rank, before they are scored."""
        ...

    def telling(self, log: Log) -> Log:
        """`log`, and this callback sees the scores too; on the rank that scores."""
        ...


class MakeCallback(Protocol):
    """Makes a `ScoreCallback`; a collective call of all ranks, in the worker."""

    def __call__(self, run: RunConfig, *, rank: int, step: int) -> ScoreCallback:
        """For a run that has made so many steps."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """The task that the driver gives its workers."""

    run: RunConfig
    fingerprint: str
    """Fingerprint of the data that the driver saw."""
    tracking_run: str
    """Id of the tracked run."""
    access: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Lets workers into the tracking server; see `drl_dist.tracking.server.address.access`."""
    model_name: str
    """Registered model that checkpoints are versions of."""
    started: float
    """When the job was started, in seconds since 1970."""
    first_step: int
    """Steps that were made then."""
    num_rollbacks: int = 0
    """How often the run has gone back to a checkpoint because it diverged."""
    make_callback: MakeCallback | None = None
    """Makes a further callback on each rank, for the job that started this run."""
    arrival: KeyInStore
    """Written by the first worker when it is there."""
    stop_flag: StopFlag | None
    """Where the driver says that all are to stop; None where the job that started this run stops it."""
