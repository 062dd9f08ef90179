"""Detection of runs that have run away although all their numbers are still finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from drl_dist.common.batch import Batch, BatchSource
from drl_dist.training.guard import REMEDY, DivergedError
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState

FIRST_STEPS = 10
"""Steps with log-density gaps which those of later steps are held against: the first of the run that report any, which
are those after the switch where a run begins with an objective without negatives."""
MAX_MOVE = 10.0
"""Root-mean-square move of chains per pixel that no run comes back from; white noise is about 1 away from any image."""
_LOOK_EVERY = 10
_GAP, _DISPLACEMENT = "log_density_gap/", "displacement/"


@dataclass(frozen=True, kw_only=True)
class DivergenceLimits:
    """When a run counts as diverged. Measured on digits, T = 6 (docs/sweeps.md)."""

    max_gap_growth: float
    """Limit of |log-density gap| at a noise level, in multiples of its largest value in the first steps. A fresh
    network is steep and its gaps are large; a run that learns makes them smaller."""
    max_displacement: float
    """Root-mean-square move of the chains per pixel, mean over levels. Pixels lie in [-1, 1]."""
    max_saturated: float
    """Share of generated pixels at 0 or 255."""
    grace_images: int
    """Images seen before which displacement and pixels are not looked at."""


class RunawayError(DivergedError):
    """What the chains do has diverged, though loss and gradient are finite.

    Args:
        step: steps made.
        reason: what was found, and the limit.
    """

    def __init__(self, step: int, reason: str) -> None:
        self.step, self.reason = step, reason
        RuntimeError.__init__(self, f"training diverged at step {step}: {reason}")

    def __reduce__(self) -> tuple[object, ...]:
        return (RunawayError, (self.step, self.reason))


@dataclass
class DivergenceWatch:
    """Looks at what all ranks see alike, so that all of them end at the same step.

    Args:
        limits: when a run counts as diverged.
        first_gaps: largest gap of the first steps by metric name, in nats; of an earlier start, or empty.
        num_first_steps: steps that these are of, at most `FIRST_STEPS`.
    """

    limits: DivergenceLimits
    first_gaps: dict[str, float] = field(default_factory=dict[str, float])
    num_first_steps: int = 0

    def see_step(self, step: int, images_seen: int, metrics: Mapping[str, float]) -> None:
        """Look at the numbers of a step, named as `drl_dist.tracking.metrics.METRICS` has them.

        Args:
            step: steps made, this one included.
            images_seen: since the run's first step.

        Raises:
            RunawayError: the run has diverged.
        """
        gaps = {name: abs(value) for name, value in metrics.items() if name.startswith(_GAP)}
        if gaps and self.num_first_steps < FIRST_STEPS:
            self.num_first_steps += 1
            for name, gap in gaps.items():
                self.first_gaps[name] = max(gap, self.first_gaps.get(name, 0.0))
            return
        for name, gap in gaps.items():
            limit = self.limits.max_gap_growth * self.first_gaps.get(name, float("inf"))
            if gap > limit:
                raise RunawayError(step, f"{name} of {metrics[name]:.4g} nats, more than {limit:.4g} on either side")
        moves = [value for name, value in metrics.items() if name.startswith(_DISPLACEMENT)]
        if images_seen > self.limits.grace_images and moves:
            move = sum(moves) / len(moves)
            if move > self.limits.max_displacement:
                raise RunawayError(
                    step, f"chains that move by {move:.3g} per pixel, more than {self.limits.max_displacement:.3g}"
                )

    def see_images(self, step: int, images_seen: int, images: Tensor) -> None:
        """Look at generated images, uint8 (B, C, H, W).

        Raises:
            RunawayError: the run has diverged.
        """
        if images_seen <= self.limits.grace_images:
            return
        saturated = saturated_share(images)
        if saturated > self.limits.max_saturated:
            raise RunawayError(
                step,
                f"{saturated:.1%} of generated pixels at the ends of the range, more than "
                f"{self.limits.max_saturated:.1%}",
            )


@dataclass(frozen=True)
class RunawayGuard:
    """A callback that ends a run whose chains have run away, before a checkpoint of it takes the place of a good one.

    Such a run need not come to numbers that are not finite for hundreds of steps. The displacement is averaged over all
    ranks, so that all end at the same step.

    Args:
        checkpoint_every: as ``checkpoint.every_steps``: looks where a checkpoint is written, too.
    """

    checkpoint_every: int | str

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Look at every tenth step: reading numbers that nobody else asked for waits for the device.

        Raises:
            RunawayError: the chains move farther than `MAX_MOVE`.
        """
        if report.step % _LOOK_EVERY and not report.wants_checkpoint(self.checkpoint_every):
            return
        moves = [value for name, value in report.metrics().items() if name.startswith(_DISPLACEMENT)]
        if moves and max(moves) > MAX_MOVE:
            raise RunawayError(
                report.step, f"chains move by {max(moves):.3g} per pixel, more than {MAX_MOVE:g}; {REMEDY}"
            )


class FirstBatch:
    """Batches that pass through; of the first of them, the share of pixels at 0 or 255 is told.

    Args:
        batches: of this rank.
        tell: gets the share.
    """

    def __init__(self, batches: BatchSource, tell: Callable[[float], None]) -> None:
        self._batches, self._tell = batches, tell

    def __iter__(self) -> Iterator[Batch]:
        stream = iter(self._batches)
        first = next(stream)
        self._tell(saturated_share(first.images))
        yield first
        yield from stream


def saturated_share(images: Tensor) -> float:
    """Share of pixels of uint8 images at 0 or 255."""
    return float(((images == 0) | (images == 255)).to(torch.float64).mean())
