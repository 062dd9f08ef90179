"""How much of its time a run that is interrupted again and again spends on steps that stay, and how often it should
write checkpoints.

An interruption costs three things: the recovery, the work since the newest checkpoint's step, and the time which that
checkpoint took to get to storage, for until then the one before it counts. Checkpoints are written beside training,
which waits for little of it; what it does wait, and what it is slowed down by, is the price of each. All times are in
seconds.

The formulas:

- the interval of least loss to first order, sqrt(2 C M), for a price C of each checkpoint and a mean time M between
  interruptions (J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974);
- the duration of a run whose interruptions are a Poisson process, M e^(R/M) (e^((T + C)/M) - 1) for each interval of
  work T, with R from an interruption until work continues (J. T. Daly, A higher order estimate of the optimum
  checkpoint interval for restart dumps, FGCS 22(3), 2006, section 4). A checkpoint that takes D to be complete behind
  the work's back adds D to what each interruption loses, as D more of R does.

With C near 0, Young's interval is, too: then checkpoints follow one another as closely as storage takes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

UPLOADS_APART = 2.0
"""Least interval in durations of an upload: the next one would have to wait for an upload that takes longer than usual.
"""


@dataclass(frozen=True, kw_only=True)
class CheckpointCost:
    """What a checkpoint takes."""

    price_seconds: float
    """Work that is not done because of it: training waits, or is slowed down."""
    upload_seconds: float
    """From the step that it is of until it is complete in storage."""


def between_interruptions(lifetime_hours: float, machines: int) -> float:
    """Mean seconds between interruptions of a run that any of its machines interrupts.

    Args:
        lifetime_hours: mean time until a machine is lost.
        machines: that the run is on.
    """
    return lifetime_hours * 3600.0 / machines


def best_interval(cost: CheckpointCost, between_seconds: float) -> float:
    """Seconds of work between checkpoints at which least of them is lost.

    Args:
        cost: of a checkpoint.
        between_seconds: mean time M between interruptions.
    """
    return max(math.sqrt(2.0 * cost.price_seconds * between_seconds), UPLOADS_APART * cost.upload_seconds)


def best_every_steps(cost: CheckpointCost, between_seconds: float, step_seconds: float) -> int:
    """`best_interval` in whole steps, at least one."""
    return max(1, math.ceil(best_interval(cost, between_seconds) / step_seconds))


def goodput(interval: float, cost: CheckpointCost, recovery_seconds: float, between_seconds: float) -> float:
    """Share of the time that goes into work that stays, where interruptions come at random (a Poisson process).

    Args:
        interval: T, work between checkpoints.
        cost: of a checkpoint.
        recovery_seconds: R, from an interruption until work continues; interrupted itself, it begins again.
        between_seconds: M, mean time between interruptions.
    """
    whole = interval + cost.price_seconds
    lost = recovery_seconds + cost.upload_seconds
    try:
        return interval / (between_seconds * math.exp(lost / between_seconds) * math.expm1(whole / between_seconds))
    except OverflowError:
        return 0.0


def goodput_between_regular(
    interval: float, cost: CheckpointCost, recovery_seconds: float, between_seconds: float
) -> float:
    """As `goodput`, where interruptions come one `between_seconds` after the other, at any moment between checkpoints.

    Each loses half an interval on average. It holds where more than an interval of work lies between interruptions.
    """
    whole = interval + cost.price_seconds
    lost = recovery_seconds + cost.upload_seconds + whole / 2
    return max(0.0, interval / whole * (1.0 - lost / between_seconds))
