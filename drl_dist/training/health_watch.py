"""A callback that says in the log, and to the tracker, how a run does; rarely."""

from __future__ import annotations

import time
from collections.abc import Callable

from drl_dist.training.callbacks import LogMetrics
from drl_dist.training.health import LEVELS, LIMITS, Health, HealthLimits, is_watched, judge
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState

AGAIN_SECONDS = 600.0
"""Seconds after which what is still wrong is said again."""


class HealthWatch:
    """Judges a run at the steps whose metrics are logged; for the first rank, behind what logs them.

    Its memory is of this start: after a restart, gaps are held against the first steps that follow.

    Args:
        log: gets the metric ``health``; also hand `see` what others log, the samples' pixels among it.
        every_steps: steps between two logs.
        tell: gets the health in words when it changes, e.g. for a tag.
        limits: where a run counts as ill.
        clock: seconds, which never go back.
        prefix: of every line, as of `drl_dist.training.callbacks.Progress`.
    """

    def __init__(
        self,
        log: LogMetrics,
        every_steps: int,
        *,
        tell: Callable[[str], None] = lambda _: None,
        limits: HealthLimits = LIMITS,
        clock: Callable[[], float] = time.monotonic,
        prefix: str = "",
    ) -> None:
        self._prefix = prefix
        self._log, self._every, self._tell, self._limits, self._clock = log, every_steps, tell, limits, clock
        self._series: dict[str, dict[int, float | None]] = {}
        self._steps: list[int] = []
        self._said, self._said_at = "too early", 0.0

    def see(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers of a step that are logged."""
        for name, value in numbers.items():
            if is_watched(name):
                self._series.setdefault(name, {})[step] = value

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        is_last = report.step == report.num_steps
        if report.step % self._every and not is_last:
            return
        self.see(report.step, report.metrics())
        self._steps.append(report.step)
        self._forget()
        # A judgement takes a millisecond; of short steps every tenth is judged.
        if len(self._steps) % 10 and not is_last:
            return
        health = judge(self._series, limits=self._limits)
        self._log(report.step, {"health": float(LEVELS[health.name])})
        self._say(report, health, is_last=is_last)

    def _say(self, report: StepReport, health: Health, *, is_last: bool) -> None:
        now, is_changed = self._clock(), health.name != self._said
        is_wrong = bool(health.findings)
        if is_changed:
            self._tell(str(health))
        # Nobody needs to be told that nothing is wrong yet.
        is_news = is_changed and (is_wrong or self._said not in ("too early", "healthy"))
        if is_news or (is_wrong and (now - self._said_at >= AGAIN_SECONDS or is_last)):
            advice = f"; {health.advice} (docs/health.md)" if is_wrong else ""
            print(f"{self._prefix}step {report.step}/{report.num_steps}: health: {health}{advice}", flush=True)
            self._said_at = now
        self._said = health.name

    def _forget(self) -> None:
        """Keep the first rows and the newest ones of each metric."""
        first, recent = self._limits.first_rows, max(self._limits.recent_rows, self._limits.grace_rows)
        for values in self._series.values():
            # Steps come in their order.
            for step in list(values)[first:-recent]:
                del values[step]


def seen_by(watch: HealthWatch, log: LogMetrics) -> LogMetrics:
    """`log`, of which the watch sees what it gets."""

    def seen(step: int, numbers: dict[str, float]) -> None:
        watch.see(step, numbers)
        log(step, numbers)

    return seen
