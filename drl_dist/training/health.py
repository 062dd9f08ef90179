"""Whether a run goes well, judged from its recent metrics alone; docs/health.md shows good and bad ones.

Everything here is a pure function of numbers by name, as `drl_dist.tracking.metrics.METRICS` has them, so that the log
of a run, its page and a command that only reads metrics say the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from drl_dist.common.amounts import counted

Condition = Literal["diverging", "saturating", "stale", "data-bound"]
CONDITIONS: tuple[Condition, ...] = ("diverging", "saturating", "stale", "data-bound")
"""What may be wrong, the gravest first."""
ADVICE: dict[Condition, str] = {
    "diverging": "use a smaller learning rate or smaller chain steps, or --max-rollbacks",
    "saturating": "look at the samples; use smaller chain steps or a smaller learning rate",
    "stale": "look at the job's log and at `ray job list`: it has ended, hangs, or waits for storage",
    "data-bound": "see docs/performance.md: a larger --loader.decoded-mib, more CPUs per worker, or nearer storage",
}
LEVELS = {"healthy": 0, "too early": 0, "data-bound": 1, "stale": 2, "saturating": 3, "diverging": 4}
"""The metric ``health`` by what is said; the larger the graver."""

SERIES = ("loss", "grad_norm", "data_wait_fraction", "saturated_fraction", "data_saturated_fraction")
LEVEL_SERIES = ("log_density_gap/", "displacement/", "noise_error/")
"""Names, and beginnings of names, of the metrics that are looked at."""


@dataclass(frozen=True, kw_only=True)
class HealthLimits:
    """Where a run counts as ill. How they were found is in docs/health.md."""

    first_rows: int = 10
    """Logged steps with log-density gaps which later ones are held against."""
    recent_rows: int = 20
    """Newest logged steps that count: their medians, so that one step is nothing."""
    grace_rows: int = 40
    """Logged steps before which nothing but a number that is not finite counts: at first chains move far."""
    max_gap_growth: float = 10.0
    """Median of |log-density gap| at a noise level, in multiples of its largest value in the first steps."""
    max_displacement: float = 2.0
    """Root-mean-square move of the chains per pixel, mean over levels; white noise is about 1 away from any image."""
    max_noise_error: float = 2.0
    """Error of the predicted noise in standard deviations, mean over levels; predicting none gives 1."""
    saturated_margin: float = 0.9
    """Part of the way from the data's share of pixels at 0 or 255 to 1 that samples may go."""
    max_data_wait: float = 0.2
    """Share of the time that steps wait for data."""
    min_silence_seconds: float = 300.0
    """Silence that is never stale: a checkpoint, samples and scores take their time."""
    max_silence_intervals: float = 20.0
    """Silence in multiples of the usual time between two logged steps."""


LIMITS = HealthLimits()


@dataclass(frozen=True)
class Health:
    """What is said of a run."""

    findings: tuple[tuple[Condition, str], ...]
    """What is wrong and why, the gravest first; empty if nothing is."""
    is_early: bool = False
    """Whether there are too few steps to say."""

    @property
    def name(self) -> str:
        """One word for it."""
        return self.findings[0][0] if self.findings else "too early" if self.is_early else "healthy"

    def __str__(self) -> str:
        if not self.findings:
            return "too early to say" if self.is_early else "healthy"
        return "; ".join(f"{condition}: {reason}" for condition, reason in self.findings)

    @property
    def advice(self) -> str:
        """What to do about the gravest finding; empty if there is none."""
        return ADVICE[self.findings[0][0]] if self.findings else ""


def is_watched(name: str) -> bool:
    """Whether a metric is one that is looked at."""
    return name in SERIES or name.startswith(LEVEL_SERIES)


def judge(
    series: Mapping[str, Mapping[int, float | None]],
    *,
    silent_seconds: float = 0.0,
    interval_seconds: float | None = None,
    limits: HealthLimits = LIMITS,
) -> Health:
    """Judge a run.

    Args:
        series: metrics by step, null or NaN for numbers that were not finite; others than `is_watched` are ignored.
        silent_seconds: since the newest number of a run that is said to run; 0 for one that has ended.
        interval_seconds: usual time between two logged steps, None if not known.
        limits: where a run counts as ill.
    """
    steps = sorted({step for name in ("loss", "grad_norm") for step in series.get(name, {})})
    recent = set(steps[-limits.recent_rows :])
    findings: list[tuple[Condition, str]] = []
    if lost := _lost(series, recent):
        findings.append(("diverging", lost))
    is_early = len(steps) < limits.grace_rows
    if not is_early:
        found = _grown_gap(series, recent, limits) or _far(series, recent, limits) or _wrong(series, recent, limits)
        if found and not lost:
            findings.append(("diverging", found))
        if found := _saturated(series, limits):
            findings.append(("saturating", found))
    longest = max(limits.min_silence_seconds, limits.max_silence_intervals * (interval_seconds or 0.0))
    if silent_seconds > longest:
        findings.append(("stale", f"no step for {silent_seconds:.0f} s, more than {longest:.0f} s"))
    if not is_early:
        waits = _values(series.get("data_wait_fraction", {}), recent)
        if waits and (wait := statistics.median(waits)) > limits.max_data_wait:
            findings.append(
                ("data-bound", f"steps wait for data {wait:.0%} of the time, more than {limits.max_data_wait:.0%}")
            )
    return Health(tuple(findings), is_early)


def _lost(series: Mapping[str, Mapping[int, float | None]], recent: set[int]) -> str | None:
    for name in ("loss", "grad_norm"):
        for step, value in series.get(name, {}).items():
            if step in recent and (value is None or not math.isfinite(value)):
                return f"{name} is not finite at step {step}"
    return None


def _grown_gap(series: Mapping[str, Mapping[int, float | None]], recent: set[int], limits: HealthLimits) -> str | None:
    """The level whose gap has grown most beyond its limit."""
    worst, said = 1.0, None
    for name, values in series.items():
        if not name.startswith("log_density_gap/"):
            continue
        steps = sorted(values)
        first = [abs(value) for value in _values(values, steps[: limits.first_rows])]
        now = [abs(value) for value in _values(values, recent - set(steps[: limits.first_rows]))]
        if not first or not now:
            continue
        limit, gap = limits.max_gap_growth * max(first), statistics.median(now)
        if gap > worst * limit:
            worst = gap / limit if limit else math.inf
            said = (
                f"{name} is {gap:.3g} nats, more than {limits.max_gap_growth:g} times the {max(first):.3g} of the "
                f"first {counted(len(first), 'step')}"
            )
    return said


def _far(series: Mapping[str, Mapping[int, float | None]], recent: set[int], limits: HealthLimits) -> str | None:
    move = _mean_over_levels(series, "displacement/", recent)
    if move is None or move <= limits.max_displacement:
        return None
    return f"chains move by {move:.3g} per pixel, more than {limits.max_displacement:g}"


def _wrong(series: Mapping[str, Mapping[int, float | None]], recent: set[int], limits: HealthLimits) -> str | None:
    error = _mean_over_levels(series, "noise_error/", recent)
    if error is None or error <= limits.max_noise_error:
        return None
    return f"the predicted noise is wrong by {error:.3g} standard deviations, more than {limits.max_noise_error:g}"


def _saturated(series: Mapping[str, Mapping[int, float | None]], limits: HealthLimits) -> str | None:
    # Those before the first step are of an untrained network.
    drawn = {step: share for step, share in series.get("saturated_fraction", {}).items() if step > 0}
    if not drawn:
        return None
    share = drawn[max(drawn)]
    known = _values(series.get("data_saturated_fraction", {}), series.get("data_saturated_fraction", {}))
    real = known[-1] if known else 0.0
    limit = real + limits.saturated_margin * (1 - real)
    if share is None or share <= limit:
        return None
    return f"{share:.1%} of the samples' pixels are at 0 or 255, more than {limit:.1%} (the data: {real:.1%})"


def _mean_over_levels(series: Mapping[str, Mapping[int, float | None]], prefix: str, recent: set[int]) -> float | None:
    found = [_values(values, recent) for name, values in series.items() if name.startswith(prefix)]
    medians = [statistics.median(values) for values in found if values]
    return sum(medians) / len(medians) if medians else None


def _values(values: Mapping[int, float | None], steps: Sequence[int] | set[int] | Mapping[int, object]) -> list[float]:
    """The finite values of some steps, in their order."""
    chosen = (values.get(step) for step in sorted(steps))
    return [value for value in chosen if value is not None and math.isfinite(value)]
