"""Metrics of a training run for Prometheus: its speed, and the cost of faults and checkpoints."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from drl_dist.jobs.common.prometheus import Exporter
from drl_dist.training.loop import Callback, StepReport
from drl_dist.training.state import TrainState

LOOK_SECONDS = 1.0
"""Numbers of a step are read no more often than this: reading them waits for the device."""
_TYPICAL_OF = 101
"""Last steps, the median of which is how long a step takes undisturbed."""


@dataclass
class Clock:
    """Times that several parts of a worker know about."""

    stalled: float = 0.0
    """Seconds in which training waited for checkpoints to be written and handed over."""
    checkpoint_at: float = 0.0
    """When a checkpoint of this worker was last complete in storage, in seconds since 1970; 0 before the first."""

    stored: Callable[[], None] = lambda: None
    """Called when a checkpoint is complete in storage."""

    def uploaded(self) -> None:
        """A checkpoint is complete in storage."""
        self.checkpoint_at = time.time()
        self.stored()


@dataclass(frozen=True)
class Stalling:
    """A callback whose time counts as waiting for checkpoints."""

    callback: Callback
    clock: Clock

    def on_step(self, report: StepReport, state: TrainState) -> None:
        began = time.perf_counter()
        self.callback.on_step(report, state)
        self.clock.stalled += time.perf_counter() - began


@dataclass(frozen=True)
class _Last:
    """What a thread that must not wait may know of the last step."""

    step: int
    timestamp: float
    """In seconds since 1970."""
    images: float
    """Trained on in one step."""


class Exports:
    """Gives the exported numbers of a run; for the first rank.

    Steps leave behind what they know; the exporter's thread takes it, and continues when no step ends any more.

    Args:
        exporter: of the run.
        clock: of this worker.
        started: when the job was started, in seconds since 1970; restarts of its workers come later.
        first_step: the step from which the job continued.
        backlog: what is still to be sent to MLflow, by names in `EXPORTED` without `drl_`.
        log: logs some of it to the tracker too.
        log_every: steps between those.
    """

    def __init__(
        self,
        exporter: Exporter,
        clock: Clock,
        *,
        started: float,
        first_step: int,
        backlog: Callable[[], Mapping[str, float]],
        log: Callable[[int, dict[str, float]], None],
        log_every: int,
    ) -> None:
        self._exporter, self._clock, self._backlog = exporter, clock, backlog
        self._job_started, self._first_step, self._log, self._log_every = started, first_step, log, log_every
        self._began = self._looked = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=_TYPICAL_OF)
        self._since = self._waited = 0.0
        self._steps = 0
        self._last: _Last | None = None
        self._typical: float | None = None
        self._mean: float | None = None
        exporter.ask(self.look)

    def on_step(self, report: StepReport, state: TrainState) -> None:
        now, is_first, is_last = time.monotonic(), self._last is None, report.step == report.num_steps
        if not is_first or is_last:
            # The first one compiles and fills caches: taken for typical it would count as many times its worth.
            self._seconds.append(report.seconds)
        self._waited += report.wait_seconds
        self._since += report.seconds
        self._steps += 1
        self._last = _Last(report.step, time.time(), report.images_seen / report.step)
        is_due = now - self._looked >= LOOK_SECONDS or is_last
        is_logged = report.step % self._log_every == 0 or is_last
        if self._seconds and (is_due or is_logged):
            self._typical = statistics.median(self._seconds)
        if is_logged:
            goodput = {} if self._typical is None else {"goodput": self._goodput(report.step, self._typical)}
            self._log(report.step, goodput | {"checkpoint_stall_fraction": self._stall()})
        if not is_due:
            return
        self._mean = self._since / self._steps
        metrics = report.metrics()
        self._exporter.set(
            step=report.step,
            step_seconds=self._mean,
            data_wait_fraction=self._waited / self._since,
            loss=metrics["loss"],
            grad_norm=metrics["grad_norm"],
            bad_samples=metrics["bad_samples"],
        )
        self._looked, self._since, self._waited, self._steps = now, 0.0, 0.0, 0

    def look(self) -> dict[str, float]:
        """Numbers that change while no step ends, by their names in `EXPORTED` without `drl_`."""
        values = {"checkpoint_stall_fraction": self._stall(), **self._backlog()}
        if self._clock.checkpoint_at:
            values["checkpoint_timestamp_seconds"] = self._clock.checkpoint_at
        last, mean, typical = self._last, self._mean, self._typical
        if last is not None:
            values["step_timestamp_seconds"] = last.timestamp
            if mean is not None:
                values["images_per_second"] = last.images / max(mean, time.time() - last.timestamp)
            if typical is not None:
                values["goodput"] = self._goodput(last.step, typical)
        return values

    def _goodput(self, step: int, typical: float) -> float:
        return (step - self._first_step) * typical / max(time.time() - self._job_started, 1e-9)

    def _stall(self) -> float:
        return self._clock.stalled / max(time.monotonic() - self._began, 1e-9)
