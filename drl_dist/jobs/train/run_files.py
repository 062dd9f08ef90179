"""The callback that draws a run's curves as a file in its folder."""

from __future__ import annotations

from dataclasses import dataclass

from drl_dist.tracking.files.run_files import RunFiles
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState


@dataclass(frozen=True)
class Curves:
    """A callback that draws the curves where samples are drawn; stands behind what logs the numbers of a step."""

    files: RunFiles
    every_steps: int

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        if report.step % self.every_steps == 0 or report.step == report.num_steps:
            self.files.draw_curves()
