"""``--checkpoint.every-steps auto``: the first rank measures what checkpoints cost, and asks for them when one is due.

It asks in the one exchange that all ranks make at each step (`drl_dist.training.guard.agree`), so that all write the
checkpoint of the same step. Which steps have one is nothing that a step computes with.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from drl_dist.checkpoints.goodput import CheckpointCost, best_every_steps, between_interruptions
from drl_dist.common.amounts import counted
from drl_dist.common.durations import duration
from drl_dist.common.waiting import say
from drl_dist.config.tree import CheckpointConfig, TrackingConfig
from drl_dist.training.guard import Interrupt
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState

FIRST_SECONDS = 30.0
"""Before the first checkpoint, of which nothing is known yet."""
FIRST_SHARE = 0.1
"""Or this share of the time between interruptions, if that is less."""
_TYPICAL_OF = 101
_CHECKPOINTS = 9
"""The last of them, the medians of which count."""
_MUCH = 1.25
"""Factor by which an interval must be wrong to be changed."""


@dataclass
class AutoInterval:
    """Asks for checkpoints, and is called after each step, before the callback that writes them.

    Args:
        config: assumes a lifetime of machines.
        tracking: says after which steps pictures are drawn, which are no part of a step.
        machines: that the run is on.
        also: what else is asked for at each step.
        log: gets the step and the interval when it changes.
    """

    config: CheckpointConfig
    tracking: TrackingConfig
    machines: int
    also: Callable[[], Interrupt]
    log: Callable[[int, dict[str, float]], None]
    every: int | None = field(default=None, init=False)
    """Steps between checkpoints; None before the first one."""

    def __post_init__(self) -> None:
        self._between = between_interruptions(self.config.machine_lifetime_hours, self.machines)
        self._began = time.monotonic()
        self._step: int | None = None
        self._of_last = 0
        self._steps: deque[float] = deque(maxlen=_TYPICAL_OF)
        self._prices: deque[float] = deque(maxlen=_CHECKPOINTS)
        self._uploads: deque[float] = deque(maxlen=_CHECKPOINTS)
        self._on_their_way = deque[float]()
        """When the steps of those checkpoints ended that are not in storage yet."""
        self._is_measuring = False
        """From a checkpoint's step until it is in storage."""
        self._price = 0.0
        self._hides_price = False
        """Whether what the checkpoint costs cannot be told from what something else took."""
        self._had_pictures = False

    def __call__(self) -> Interrupt:
        """What is asked for after the step that is being made."""
        return max(self.also(), Interrupt.DUE if self._is_due() else Interrupt.NONE)

    def stored(self) -> None:
        """A checkpoint is complete in storage; from whatever thread."""
        if self._on_their_way:
            self._uploads.append(time.monotonic() - self._on_their_way.popleft())

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        self._measure(report)
        self._step = report.step
        if report.wants_checkpoint(self.config.every_steps):
            self._on_their_way.append(time.monotonic())
            # Writing it waits for an upload that is still under way.
            self._price, self._hides_price = 0.0, self._is_measuring
            self._is_measuring, self._of_last = True, report.step

    def _is_due(self) -> bool:
        # A report waits for the upload before it; so that training does not, the next checkpoint is not due yet. And
        # right before pictures, what it costs could not be told from what they take.
        if self._step is None or self._is_measuring or self._has_pictures(self._step + 1):
            return False
        if self.every is None:
            return time.monotonic() - self._began >= min(FIRST_SECONDS, FIRST_SHARE * self._between)
        return self._step + 1 - self._of_last >= self.every

    def _measure(self, report: StepReport) -> None:
        """Count a step, which begins with what followed the step before, as typical or for a checkpoint."""
        had_pictures, self._had_pictures = self._had_pictures, self._has_pictures(report.step)
        if self._step is None:
            # It compiles and warms up.
            self._of_last = report.step - 1
            return
        if not self._is_measuring:
            if not had_pictures:
                self._steps.append(report.seconds)
            return
        # Pictures during an upload are left out; there may be some during each.
        self._hides_price |= (had_pictures and report.step == self._of_last + 1) or not self._steps
        if not self._hides_price and not had_pictures:
            self._price += report.seconds - statistics.median(self._steps)
        if not self._on_their_way:
            self._is_measuring = False
            if not self._hides_price:
                self._prices.append(max(0.0, self._price))
            self._decide(report.step)

    def _has_pictures(self, step: int) -> bool:
        schedules = (self.tracking.sample_every_steps, self.tracking.score_every_steps)
        # After every step, they are part of it.
        return any(every is not None and every > 1 and step % every == 0 for every in schedules)

    def _decide(self, step: int) -> None:
        if not self._prices:
            return
        cost = CheckpointCost(
            price_seconds=statistics.median(self._prices), upload_seconds=statistics.median(self._uploads)
        )
        typical = statistics.median(self._steps)
        every = best_every_steps(cost, self._between, typical)
        if self.every is not None and self.every / _MUCH <= every <= self.every * _MUCH:
            return
        self.every = every
        self.log(step, {"checkpoint_every_steps": every})
        say(
            f"checkpoints every {counted(every, 'step')} of {typical:.3g} s: one costs {cost.price_seconds:.2g} s of "
            f"training and is in storage after {cost.upload_seconds:.2g} s, and one of "
            f"{counted(self.machines, 'machine')} is assumed to be lost every {duration(self._between)} "
            "(checkpoint.machine_lifetime_hours)"
        )
