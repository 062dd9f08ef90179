"""What a training run exports through Ray's metrics: how fast it goes, and what its faults and checkpoints cost."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from drl_dist.on_ray.exported import Exporter
from drl_dist.training.loop import Listener, StepReport
from drl_dist.training.state import TrainState

LOOK_SECONDS = 1.0
"""Numbers are set no more often than this: reading them waits for the device."""
_TYPICAL_OF = 101
"""Last steps, the median of which is how long a step takes undisturbed."""


@dataclass
class Clock:
    """Times that several parts of a worker know about."""

    stalled: float = 0.0
    """Seconds in which training waited for checkpoints to be written and handed over."""
    checkpoint_at: float = field(default_factory=time.time)
    """When a checkpoint was last complete in storage, in seconds since 1970; at first the worker's start."""

    def uploaded(self) -> None:
        """A checkpoint is complete in storage."""
        self.checkpoint_at = time.time()


@dataclass(frozen=True)
class Stalling:
    """A listener whose time counts as waiting for checkpoints."""

    listener: Listener
    clock: Clock

    def on_step(self, report: StepReport, state: TrainState) -> None:
        began = time.perf_counter()
        self.listener.on_step(report, state)
        self.clock.stalled += time.perf_counter() - began


class Exports:
    """Sets the exported numbers of a run; for the first rank.

    Args:
        exporter: of the run.
        clock: of this worker.
        started: when the job was started, in seconds since 1970; restarts of its workers come later.
        first_step: the step from which the job went on.
        unsent_bytes: what MLflow is still to be told.
        log: tells the tracker some of it too.
        log_every: steps between those.
    """

    def __init__(
        self,
        exporter: Exporter,
        clock: Clock,
        *,
        started: float,
        first_step: int,
        unsent_bytes: Callable[[], int],
        log: Callable[[int, dict[str, float]], None],
        log_every: int,
    ) -> None:
        self._exporter, self._clock, self._unsent_bytes = exporter, clock, unsent_bytes
        self._job_started, self._first_step, self._log, self._log_every = started, first_step, log, log_every
        self._began = self._looked = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=_TYPICAL_OF)
        self._since = self._waited = 0.0
        self._steps = 0

    def on_step(self, report: StepReport, state: TrainState) -> None:
        now = time.monotonic()
        self._seconds.append(report.seconds)
        self._waited += report.wait_seconds
        self._since += report.seconds
        self._steps += 1
        is_last = report.step == report.num_steps
        if report.step % self._log_every == 0 or is_last:
            self._log(
                report.step, {"goodput": self._goodput(report.step), "checkpoint_stall_fraction": self._stall(now)}
            )
        if now - self._looked < LOOK_SECONDS and not is_last:
            return
        self._exporter.set(
            step=report.step,
            images_per_second=report.images_seen / report.step * self._steps / self._since,
            step_seconds=self._since / self._steps,
            data_wait_fraction=self._waited / self._since,
            loss=float(report.result.loss),
            grad_norm=float(report.result.grad_norm),
            goodput=self._goodput(report.step),
            checkpoint_timestamp_seconds=self._clock.checkpoint_at,
            checkpoint_stall_fraction=self._stall(now),
            bad_samples=float(report.bad_samples),
            spool_unsent_bytes=self._unsent_bytes(),
        )
        self._looked, self._since, self._waited, self._steps = now, 0.0, 0.0, 0

    def _goodput(self, step: int) -> float:
        undisturbed = (step - self._first_step) * statistics.median(self._seconds)
        return undisturbed / max(time.time() - self._job_started, 1e-9)

    def _stall(self, now: float) -> float:
        return self._clock.stalled / max(now - self._began, 1e-9)
