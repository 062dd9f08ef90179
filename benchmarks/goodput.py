"""Goodput against the interval of checkpoints, for several lifetimes of machines, by the model of docs/reliability.md.

    python -m benchmarks.goodput --out FOLDER [--price 2 --upload 30 --recovery 120 --machines 8] [--measured FILE ...]

Draws FOLDER/goodput.png and prints, for each lifetime, the best interval and the goodput of four times as many or as
few checkpoints. FILES are those of the parts goodput and goodput_auto of `benchmarks.reliability`; each becomes a point
beside what the model says of it. By default the costs are those of a network of gigabytes on several machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.results import open_results
from drl_dist.checkpoints.goodput import (
    CheckpointCost,
    best_interval,
    between_interruptions,
    goodput,
    goodput_between_regular,
)
from drl_dist.common.durations import duration
from drl_dist.common.figures import figure_png, new_figure
from drl_dist.common.places import path_here
from drl_dist.common.program import entry_point
from drl_dist.common.validation import whole_number

LIFETIME_HOURS = (1.0, 6.0, 24.0, 24.0 * 7, 6335.0)
"""The last is that of machines of 8 GPUs in the training of Llama 3 (arXiv 2407.21783, section 3.3.4): 419 unexpected
interruptions of 2,048 machines in 54 days."""
PICTURE = "goodput.png"
_FEWEST, _MOST, _POINTS = 1.0, 4 * 3600.0, 200
"""Seconds between checkpoints."""
_FACTOR = 4.0


@dataclass(frozen=True)
class Measured:
    """A run that was killed at regular intervals."""

    name: str
    interval: float
    recovery_seconds: float
    between_seconds: float
    goodput: float

    def expected(self, upload_seconds: float) -> float:
        """What the model says."""
        cost = CheckpointCost(price_seconds=0.0, upload_seconds=upload_seconds)
        return goodput_between_regular(self.interval, cost, self.recovery_seconds, self.between_seconds)


def read_measured(path: Path) -> Measured:
    """A part of `benchmarks.reliability`."""
    told = json.loads(path.read_text())
    faults = told["faults"]
    # From kill to kill; the first steps and the last are no such cycle.
    gaps = [after["time"] - before["time"] for before, after in pairwise(faults)]
    return Measured(
        path.stem,
        told["every_steps"] * told["step_seconds"],
        statistics.median(fault["recovery_seconds"] for fault in faults),
        statistics.mean(gaps),
        told["goodput"],
    )


def table(cost: CheckpointCost, recovery: float, machines: int) -> str:
    """For each lifetime the best interval, its goodput, and those of four times as many or as few checkpoints."""
    lines = [
        "| lifetime of a machine | interruptions | best interval | goodput | of a quarter of it | of four times it |",
        "|---|---|---|---|---|---|",
    ]
    for hours in LIFETIME_HOURS:
        between = between_interruptions(hours, machines)
        best = best_interval(cost, between)
        found = [goodput(best * factor, cost, recovery, between) for factor in (1.0, 1 / _FACTOR, _FACTOR)]
        cells = [_hours(hours), f"every {duration(between)}", duration(best), *(f"{one:.2%}" for one in found)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(cost: CheckpointCost, recovery: float, machines: int, measured: Sequence[Measured]) -> bytes:
    """The curves, the best interval of each, and what was measured; PNG."""
    figure = new_figure(9.0, 5.0)
    axes = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    left = axes[0]
    intervals = [_FEWEST * (_MOST / _FEWEST) ** (point / (_POINTS - 1)) for point in range(_POINTS)]
    for hours in LIFETIME_HOURS:
        between = between_interruptions(hours, machines)
        (line,) = left.plot(
            intervals, [100 * goodput(one, cost, recovery, between) for one in intervals], label=_hours(hours)
        )
        best = best_interval(cost, between)
        left.plot([best], [100 * goodput(best, cost, recovery, between)], "o", color=line.get_color())
    left.axvspan(_FEWEST, cost.upload_seconds, color="#dddddd", zorder=0)
    left.set(xscale="log", xlabel="seconds of work between checkpoints", ylabel="goodput, %", ylim=(0, 101))
    left.legend(title="lifetime of a machine", fontsize=8, title_fontsize=8)
    left.set_title(f"{machines} machines; dots: the interval of auto; grey: shorter than an upload", fontsize=9)
    if measured:
        right = axes[1]
        right.plot([0, 100], [0, 100], color="#999999", linewidth=1)
        for one in measured:
            right.plot([100 * one.expected(1.0)], [100 * one.goodput], "o", label=one.name)
        right.set(xlabel="the model's goodput, %", ylabel="measured, %", xlim=(0, 100), ylim=(0, 100))
        right.legend(fontsize=8)
        right.set_title("runs whose workers were killed every minute", fontsize=9)
    caption = (
        f"Goodput by the model: a checkpoint costs {cost.price_seconds:g} s of training and is in storage after "
        f"{cost.upload_seconds:g} s, recovery takes {recovery:g} s"
    )
    return figure_png(figure, caption)


def main() -> int:
    """Parse, print, draw; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_here, required=True)
    parser.add_argument("--price", type=_seconds, default=2.0, help="seconds that a checkpoint costs training")
    parser.add_argument("--upload", type=_seconds, default=30.0, help="seconds until it is in storage")
    parser.add_argument(
        "--recovery", type=_seconds, default=120.0, help="seconds from an interruption to the next step"
    )
    parser.add_argument("--machines", type=whole_number, default=8)
    parser.add_argument("--measured", type=path_here, nargs="*", default=[], help="files of benchmarks.reliability")
    arguments = parser.parse_args()
    if arguments.machines < 1:
        parser.error("--machines: got 0, expected at least 1")
    out: Path = arguments.out.resolve()
    try:
        measured = [read_measured(path) for path in arguments.measured]
    except (OSError, ValueError, KeyError, statistics.StatisticsError) as error:
        parser.error(
            f"--measured: got {error!r}, expected goodput.json of benchmarks.reliability with two kills or more"
        )
    open_results(parser, out, [], [PICTURE])
    cost = CheckpointCost(price_seconds=arguments.price, upload_seconds=arguments.upload)
    print(table(cost, arguments.recovery, arguments.machines))
    for one in measured:
        print(f"{one.name}: measured {one.goodput:.1%}, the model says {one.expected(1.0):.1%}")
    (out / PICTURE).write_bytes(picture(cost, arguments.recovery, arguments.machines, measured))
    print(out / PICTURE)
    return 0


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}, expected a number of seconds, 0 or more")
    return value


def _hours(hours: float) -> str:
    return f"{hours:g} h" if hours <= 24 else f"{hours / 24:.0f} days"


if __name__ == "__main__":
    entry_point(main)
