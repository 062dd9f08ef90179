"""The training loop, over small protocols: where batches come from, and what is called after each step."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from drl_dist.common.batch import BatchSource
from drl_dist.config.tree import Experiment
from drl_dist.training.guard import Interrupt
from drl_dist.training.state import TrainState
from drl_dist.training.step import StepResult, TrainStep

RECENT_SECONDS = 60.0
_MARK_SECONDS = 1.0
"""Seconds between the steps that are kept to look back to."""


@dataclass(frozen=True)
class StepReport:
    """One step as the callbacks see it."""

    step: int
    """Steps made so far, this one included."""
    num_steps: int
    """Steps in all."""
    result: StepResult
    """Its damaged images are those since the first step of the run; its tensors become floats in `metrics` alone."""
    wait_seconds: float
    """Time this rank waited for its batch."""
    seconds: float
    """Duration of the whole step, the waiting and the callbacks of the step before included."""
    images_seen: int
    """Over all ranks, since the first step of the run."""
    images_per_second: float
    """Over all ranks."""
    chain_steps_per_second: float
    """Langevin steps of single images, over all ranks."""
    recent_seconds: float | None = None
    """Mean duration of the whole steps of the last minute, but for the first step; None if there is no other."""

    def wants_checkpoint(self, every_steps: int | str | None) -> bool:
        """Whether a checkpoint is written after this step.

        Args:
            every_steps: as ``checkpoint.every_steps``; with auto they are asked for.
        """
        is_due = isinstance(every_steps, int) and self.step % every_steps == 0
        return is_due or self.step == self.num_steps or self.result.interrupt is not Interrupt.NONE

    def metrics(self) -> dict[str, float]:
        """Every number of the step by its name; read from the device once, however many callbacks ask."""
        return dict(self._metrics)

    @cached_property
    def _metrics(self) -> dict[str, float]:
        return self.result.metrics() | {
            "images_per_second": self.images_per_second,
            "chain_steps_per_second": self.chain_steps_per_second,
            "data_wait_fraction": self.wait_seconds / self.seconds,
            "step_seconds": self.seconds,
            "recent_step_seconds": self.seconds if self.recent_seconds is None else self.recent_seconds,
            "images_seen": float(self.images_seen),
        }


class Callback(Protocol):
    """Called after every step, on every rank, in the order of the list."""

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """The state is the one after the step; it changes with the next one."""
        ...


def train(
    step: TrainStep,
    state: TrainState,
    experiment: Experiment,
    batches: BatchSource,
    callbacks: Sequence[Callback],
    *,
    bad_samples: Tensor | float = 0.0,
) -> None:
    """Train until the experiment's number of steps, or until all ranks agree to stop, from wherever the state is.

    Args:
        step: the training step of this rank.
        state: the state that `step` changes.
        experiment: says how many steps, and the batch size over all ranks.
        batches: this rank's batches, starting with that of step ``state.step``.
        callbacks: called after every step.
        bad_samples: damaged images that were replaced in the steps made so far.

    Raises:
        DivergedError: from the step; the state is that of the last good step.
    """
    num_steps, batch_size = experiment.train.num_steps, experiment.train.batch_size
    stream = iter(batches)
    started, pace = time.perf_counter(), _Pace()
    while state.step < num_steps:
        waited = time.perf_counter()
        batch = next(stream)
        wait_seconds = time.perf_counter() - waited
        result = step(batch)
        bad_samples = bad_samples + result.bad_samples
        result = dataclasses.replace(result, bad_samples=bad_samples)
        now = time.perf_counter()
        seconds, started = now - started, now
        rate = batch_size / seconds
        report = StepReport(
            step=state.step,
            num_steps=num_steps,
            result=result,
            wait_seconds=wait_seconds,
            seconds=seconds,
            images_seen=state.step * batch_size,
            images_per_second=rate,
            chain_steps_per_second=rate * (_num_chain_steps(experiment) if step.objective.needs_negatives else 0.0),
            recent_seconds=pace.after(state.step, now),
        )
        for callback in callbacks:
            callback.on_step(report, state)
        if result.interrupt is Interrupt.STOP:
            return


class _Pace:
    """Durations of steps, of late; the first one, which compiles and warms up, is left out."""

    def __init__(self) -> None:
        self._marks = deque[tuple[float, int]]()

    def after(self, step: int, now: float) -> float | None:
        """See `StepReport.recent_seconds`."""
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= now - RECENT_SECONDS:
            marks.popleft()
        recent = (now - marks[0][0]) / (step - marks[0][1]) if marks else None
        if not marks or now - marks[-1][0] >= _MARK_SECONDS:
            marks.append((now, step))
        return recent


def _num_chain_steps(experiment: Experiment) -> float:
    """Chain steps of an image in a training step with negatives, on average over the levels that it can have."""
    steps = experiment.mcmc.chain_steps
    return sum(steps) / len(steps)
