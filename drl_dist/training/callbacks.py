"""Callbacks of the training loop that need torch and numpy alone: progress, metrics, samples and scores.

They write nothing themselves: numbers and pictures go to functions that the caller hands in, for instance the methods
of a tracker, or two that write files (docs/training.md).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from drl_dist.common.amounts import counted
from drl_dist.common.durations import duration
from drl_dist.common.images import PROGRESSION_TITLE, Panel
from drl_dist.common.waiting import Waiting, say
from drl_dist.config.tree import EngineConfig, Experiment, RunConfig
from drl_dist.sampling.labels import rows_of_classes
from drl_dist.training.generate import draw_together
from drl_dist.training.guard import Interrupt
from drl_dist.training.loop import Callback, StepReport
from drl_dist.training.state import TrainState
from drl_dist.training.watch import saturated_share

PROGRESS_SECONDS = 10.0
"""Seconds between lines of `Progress`."""
PROGRESSION_ROWS = 8
"""Images whose way from noise is shown."""

LogMetrics = Callable[[int, dict[str, float]], None]
"""Takes the numbers of a step, by name."""
LogImages = Callable[[str, int, Panel], None]
"""Takes a name, a step and images of it, uint8 on the CPU."""
ScoreImages = Callable[[Tensor], dict[str, float]]
"""Generated images, uint8 (B, C, H, W) on the CPU, to scores by name."""
SeeImages = Callable[[int, int, Tensor], None]
"""Takes the step, the images trained on since the first step, and generated images, uint8 (B, C, H, W)."""

_PACE_LINES = 7
"""Lines over which the time of a step is averaged for the time left: about a minute, so that a slow beginning, a change
of objective and a busy machine count for as long as they last."""
_INTERRUPTS = {
    Interrupt.CHECKPOINT: "a machine is about to be taken away, so a checkpoint is written",
    Interrupt.STOP: "asked to stop, so a checkpoint is written and training ends",
}


class Progress:
    """Prints a line every few seconds: step, loss, rate, share of time spent waiting for data, time left.

    Args:
        prefix: of every line, for runs that others run beside, such as ``"trial-3: "``.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._began = self._printed = time.monotonic()
        self._waited = 0.0
        self._first_step: int | None = None
        self._printed_step = 0
        self._marks = deque[tuple[float, int]](maxlen=_PACE_LINES)

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        now = time.monotonic()
        if (why := _INTERRUPTS.get(report.result.interrupt)) is not None:
            say(f"{self._prefix}{_at(report)}: {why}")
        if self._first_step is None:
            # Compilation and warm-up would spoil the estimate.
            self._first_step = self._printed_step = report.step
            self._began = now
            self._marks.append((now, report.step))
            say(f"{self._prefix}{_at(report)}: under way")
            return
        self._waited += report.wait_seconds
        if now - self._printed < PROGRESS_SECONDS and report.step < report.num_steps:
            return
        steps, seconds = report.step - self._printed_step, now - max(self._printed, self._began)
        since, first = self._marks[0]
        per_step = (now - since) / (report.step - first)
        self._marks.append((now, report.step))
        images = report.images_seen / report.step * steps / seconds
        left = (report.num_steps - report.step) * per_step
        say(
            f"{self._prefix}{_at(report)}: loss {report.metrics()['loss']:.4g}, {images:.1f} images/s, "
            f"waiting for data {self._waited / seconds:.1%}" + (f", {duration(left)} left" if left else "")
        )
        self._printed, self._printed_step, self._waited = now, report.step, 0.0


def _at(report: StepReport) -> str:
    return f"step {report.step}/{report.num_steps}"


def told(waiting: Waiting, run: RunConfig | None, callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks of a step between two that let a `Waiting` say what takes long: them, or the next step.

    Args:
        waiting: prints lines.
        run: says when samples, scores and checkpoints are due; None where only the caller's callbacks know.
        callbacks: all others, in their order.
    """
    return [_Following(waiting, run), *callbacks, _NextStep(waiting)]


def to_come(run: RunConfig, step: int) -> str:
    """What comes, on the device that computes, between the state after `step` and the first line of progress."""
    parts = ["samples of the untrained network"] if step == 0 else []
    parts += ["compiling the network"] if run.use_gpu and run.engine.compile != "never" else []
    parts += ["the first images of the data", f"step {step + 1}"]
    return "to come: " + ", ".join(parts)


@dataclass(frozen=True)
class _NextStep:
    """See `told`."""

    waiting: Waiting

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        if report.step == report.num_steps or report.result.interrupt is Interrupt.STOP:
            self.waiting.begin("bringing the last metrics and checkpoints to storage", is_told=False)
        else:
            self.waiting.begin(f"making step {report.step + 1} of {report.num_steps}", is_told=False)


@dataclass(frozen=True)
class _Following:
    """See `told`."""

    waiting: Waiting
    run: RunConfig | None

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        parts = [] if self.run is None else _due(self.run, report)
        self.waiting.begin(f"{', '.join(parts or ['callbacks'])} after step {report.step}", is_told=False)


def _due(run: RunConfig, report: StepReport) -> list[str]:
    schedules = (
        ("drawing samples", run.tracking.sample_every_steps),
        ("drawing and scoring images", run.tracking.score_every_steps),
    )
    is_last = report.step == report.num_steps
    due = [what for what, every in schedules if every is not None and (is_last or report.step % every == 0)]
    return due + ["writing a checkpoint"] * report.wants_checkpoint(run.checkpoint.every_steps)


@dataclass(frozen=True)
class Metrics:
    """Logs every number of a step, every so many steps and at the last one.

    Args:
        log: gets the step and its numbers.
        every_steps: steps between two logs.
    """

    log: LogMetrics
    every_steps: int

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        if report.step % self.every_steps == 0 or report.step == report.num_steps:
            self.log(report.step, report.metrics())


@dataclass(frozen=True)
class Samples:
    """Shows images generated from the averaged weights, always from the same noise; all ranks draw a share.

    Energies that know classes show a row of each, if a sheet has room for all.

    Args:
        experiment: of the run.
        engine: how gradients are computed.
        every_steps: steps between two sheets; there is one at the last step too.
        num_samples: images in a sheet.
        rank, world_size: this rank, and how many there are.
        show: gets ``samples`` or ``progression``, the step and the images; None on ranks that only help to draw.
        log: gets the share of the samples' pixels at 0 or 255.
    """

    experiment: Experiment
    engine: EngineConfig
    every_steps: int
    num_samples: int
    rank: int = 0
    world_size: int = 1
    show: LogImages | None = None
    log: LogMetrics | None = None

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        if report.step % self.every_steps == 0 or report.step == report.num_steps:
            self.draw(report.step, state)

    def draw(self, step: int, state: TrainState) -> None:
        """Draw and show the pictures of a state; a collective call of all ranks."""
        condition = self.experiment.condition
        columns = self.num_samples // condition.size if condition.kind == "class" else 0
        labels, count, names = None, self.num_samples, ()
        if columns:
            labels, count, names = rows_of_classes(condition, columns), columns * condition.size, condition.names
        stages = draw_together(
            self.experiment,
            self.engine,
            state,
            count,
            rank=self.rank,
            world_size=self.world_size,
            whole_way=True,
            labels=labels,
        )
        if self.log is not None:
            self.log(step, {"saturated_fraction": saturated_share(stages[-1])})
        if self.show is not None:
            title = "samples of the averaged weights"
            self.show("samples", step, Panel(title=title, images=stages[-1], columns=columns or None, row_names=names))
            # The first of each class.
            rows = stages[:, :: columns or 1][:, :PROGRESSION_ROWS].transpose(0, 1).flatten(0, 1)
            shown = names[:PROGRESSION_ROWS]
            way = Panel(title=PROGRESSION_TITLE, images=rows, columns=len(stages), row_names=shown)
            self.show("progression", step, way)


@dataclass(frozen=True)
class Scores:
    """Scores images generated from the averaged weights, always from the same noise; all ranks draw a share.

    Args:
        experiment: of the run.
        engine: how gradients are computed.
        every_steps: steps between two scores; there is one at the last step too.
        num_images: that are scored.
        rank, world_size: this rank, and how many there are.
        score: turns generated images into numbers by name.
        log: gets the step and the numbers. Both are None on ranks that only help to draw.
        look: gets the images on every rank, before they are scored.
        prefix: of the line with the scores, as of `Progress`.
    """

    experiment: Experiment
    engine: EngineConfig
    every_steps: int
    num_images: int
    rank: int = 0
    world_size: int = 1
    score: ScoreImages | None = None
    log: LogMetrics | None = None
    look: SeeImages | None = None
    prefix: str = ""

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        if report.step % self.every_steps and report.step != report.num_steps:
            return
        began = time.monotonic()
        images = draw_together(
            self.experiment,
            self.engine,
            state,
            self.num_images,
            rank=self.rank,
            world_size=self.world_size,
            whole_way=False,
        )[-1]
        if self.look is not None:
            self.look(report.step, report.images_seen, images)
        if self.score is not None and self.log is not None:
            numbers = self.score(images)
            self.log(report.step, numbers)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            say(
                f"{self.prefix}{_at(report)}: {shown} of {counted(self.num_images, 'image')}, drawn and scored in "
                f"{duration(time.monotonic() - began)}"
            )


@dataclass(frozen=True)
class Curves:
    """Draws curves where samples are drawn; stands behind what logs the numbers of a step.

    Args:
        draw: draws them all.
        every_steps: steps between two sheets of samples.
    """

    draw: Callable[[], None]
    every_steps: int

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        if report.step % self.every_steps == 0 or report.step == report.num_steps:
            self.draw()
