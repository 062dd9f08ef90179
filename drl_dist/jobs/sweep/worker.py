"""What a training worker does besides, where its run is a trial of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray.train
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor

from drl_dist.config.tree import RunConfig
from drl_dist.jobs.sweep.record import CURVE, OBJECTIVE, Curve, Point, read, write
from drl_dist.jobs.train.task import Log
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState
from drl_dist.training.watch import DivergenceLimits, DivergenceWatch


@dataclass
class TrialScores:
    """Ends a trial that has diverged, keeps the trial's curve beside its checkpoints, and reports each score to Ray.

    Stands behind the callback that scores, and before the one that writes checkpoints: a checkpoint that is complete
    has its scores in the curve.

    Args:
        watch: the same on all ranks.
        run_url: the trial's folder.
        every_steps: schedule of the scores.
        curve: so far; None on ranks that do not score.
    """

    watch: DivergenceWatch
    run_url: str
    every_steps: int
    curve: Curve | None
    _scores: dict[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def resumed(cls, limits: DivergenceLimits, run: RunConfig, *, rank: int, step: int) -> TrialScores:
        """For a trial that has made so many steps; a collective call of all ranks."""
        every_steps = run.tracking.score_every_steps
        assert every_steps is not None, "the plan of a sweep gives its trials a schedule of scores"
        curve = (read(run.url, CURVE, Curve) or Curve()).before(step) if rank == 0 else None
        # Ray's types know of bytes alone.
        first_gaps: Any = broadcast_from_rank_zero(curve.first_gaps if curve else None)
        watch = DivergenceWatch(limits, dict(first_gaps) if step else {})
        return cls(watch, run.url, every_steps, curve)

    def telling(self, log: Log) -> Log:
        """A function that logs scores, and notes them for the report of their step."""

        def told(step: int, numbers: dict[str, float]) -> None:
            log(step, numbers)
            self._scores = {name: float(value) for name, value in numbers.items()}

        return told

    def see_images(self, step: int, images_seen: int, images: Tensor) -> None:
        """Generated images, on every rank; see `DivergenceWatch.see_images`."""
        self.watch.see_images(step, images_seen, images)

    def on_step(self, report: StepReport, state: TrainState) -> None:
        self.watch.see_step(report.step, report.images_seen, report.metrics())
        if report.step % self.every_steps and report.step != report.num_steps:
            return
        metrics: dict[str, float] = {"step": report.step}
        if self.curve is not None:
            point = Point(step=report.step, images_seen=report.images_seen, scores=self._scores)
            self.curve = Curve(points=(*self.curve.points, point), first_gaps=dict(self.watch.first_gaps))
            write(self.run_url, CURVE, self.curve)
            metrics |= {"images_seen": report.images_seen, "score": self._scores[OBJECTIVE]}
        # A collective call: every rank reports, or the others would wait for ever.
        ray.train.report(metrics)
