"""``python -m drl_dist compare``: in which settings two runs differ, and their curves in one picture."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.figures import SMALLEST_POINTS, figure_png, new_figure
from drl_dist.common.nested import flatten
from drl_dist.common.validation import local_of, refuse_missing
from drl_dist.console.options import CompareOptions
from drl_dist.console.runs import RunView, view_run
from drl_dist.console.status import table
from drl_dist.data.filesystem import check_writable_file, write_local
from drl_dist.tracking.curve_panels import LINEAR_NATS, Curve, binned, without_level
from drl_dist.tracking.files.table import histories, read_table
from drl_dist.tracking.metrics import describe, plain_name

PANELS = ("loss", "grad_norm", "log_density_gap", "displacement", "noise_error", "score/fid")
"""Metrics that have a panel where a run has them; of those of each level, the mean size over levels."""
_COLOURS = ("#1f77b4", "#d95f02")


def compare(options: CompareOptions) -> int:
    """Print the differences and draw the curves; the exit status.

    Raises:
        UserError: a folder is no run's, --out cannot be written or holds something else, or no run has metrics.
    """
    if options.run and not options.other:
        raise UserError("command line", got="one run", expected="two", remedy="name the other one")
    refuse_missing({"RUN": options.run, "OTHER": options.other})
    if not options.out.lower().endswith(".png"):
        raise UserError("option --out", got=options.out, expected="a name that ends in .png", remedy="choose another")
    out = local_of(options.out, "option --out").absolute()
    check_writable_file(str(out), "option --out")
    runs = [view_run(url, options.tracking_uri) for url in (options.run, options.other)]
    if runs[0].url == runs[1].url:
        raise UserError("runs", got=f"{runs[0].url} twice", expected="two runs", remedy="give another one")
    label = f"{runs[0].url} beside {runs[1].url}"
    _refuse_other(out, label)
    for note in (note for run in runs for note in run.notes):
        print(f"note: {note}", file=sys.stderr)
    names = [run.name for run in runs]
    if names[0] == names[1]:
        names = [run.url for run in runs]
    rows = differing_fields(runs[0], runs[1])
    print(table(["field", *names], rows) if rows else "the settings and the data are the same")
    curves = [_curves(run, options.tracking_uri) for run in runs]
    panels = {metric: [found.get(metric) for found in curves] for metric in PANELS}
    panels = {metric: lines for metric, lines in panels.items() if any(line is not None for line in lines)}
    if not panels:
        raise UserError(
            "runs", got="no metric of either", expected="runs that have made a few steps", remedy="compare them later"
        )
    told = [f"{name} at step {run.step}{_seed(run)}" for name, run in zip(names, runs, strict=True)]
    write_local(out, _draw(panels, names, f"curves of {' and '.join(told)}", label))
    print(f"curves of both: {options.out}")
    return 0


def differing_fields(one: RunView, other: RunView) -> list[list[str]]:
    """Field, value of the one, value of the other, for each field in which their records differ."""
    before, after = flatten(one.record), flatten(other.record)
    return [
        [name.removeprefix("experiment."), _shown(before.get(name)), _shown(after.get(name))]
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def mean_sizes(series: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    """Metrics of `PANELS` by step; of those that each level has, the mean over levels of their absolute values.

    A small batch has no image of some levels. They count with the value between their last and their next one: levels
    differ by much, and the mean over those at hand would jump.
    """
    gathered: dict[str, list[dict[int, float]]] = {}
    for name, values in series.items():
        metric = without_level(name)
        finite = {step: value for step, value in values.items() if math.isfinite(value)}
        if metric in PANELS and finite:
            sizes = {step: abs(value) if name != metric else value for step, value in finite.items()}
            gathered.setdefault(metric, []).append(sizes)
    return {metric: _mean_of(levels) for metric, levels in gathered.items()}


def _mean_of(levels: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean of curves at every step at which one of them has a value."""
    steps = sorted({step for values in levels for step in values})
    sampled = [np.interp(steps, sorted(values), [values[step] for step in sorted(values)]) for values in levels]
    return dict(zip(steps, np.mean(sampled, axis=0).tolist(), strict=True))


def _seed(run: RunView) -> str:
    seed = flatten(run.record).get("experiment.train.seed")
    return "" if seed is None else f", seed {seed}"


def _shown(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _curves(run: RunView, tracking_uri: str | None) -> dict[str, Curve]:
    found: Mapping[str, Mapping[int, float]]
    found = {name: history.finite() for name, history in histories(read_table(run.url)).items()}
    if not found and run.status is not None and run.status.tracking_run:
        from drl_dist.tracking.tracked_runs import curves_of, look_up

        uri = tracking_uri or run.status.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if run.notes:
            # It has been said that its server is away; the other run can still be seen.
            return {}
        tracked = look_up(uri, run.status.tracking_run)
        names = _wanted(tracked.latest) if tracked else []
        print(f"fetching {counted(len(names), 'metric')} of {run.name}", file=sys.stderr, flush=True)
        merged: dict[str, dict[int, float]] = {}
        for name, values in curves_of(uri, run.status.tracking_run, names).items():
            merged.setdefault(plain_name(name), {}).update(values)
        found = merged
    return {metric: binned(values) for metric, values in mean_sizes(found).items() if values}


def _wanted(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if without_level(plain_name(name)) in PANELS)


def _refuse_other(out: Path, label: str) -> None:
    """Raise `UserError` where the file is something else than an earlier picture of the same runs."""
    if out.exists() and label.encode() not in out.read_bytes():
        raise UserError(
            f"picture {out}",
            got="a file of something else",
            expected=f"no such file, or the picture of {label}",
            remedy="choose another --out, or remove the file",
        )


def _draw(panels: Mapping[str, list[Curve | None]], names: list[str], caption: str, label: str) -> bytes:
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    width = max(9.0, 4.0 * columns)
    figure = new_figure(width, 0.9 + 3.0 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (metric, lines) in zip(axes.flat, panels.items(), strict=False):
        for curve, name, colour in zip(lines, names, _COLOURS, strict=True):
            if curve is not None:
                axis.plot(*curve, color=colour, linewidth=1.4, label=name)
        of_levels = describe(metric) is None
        largest = max(float(np.abs(curve[1]).max()) for curve in lines if curve is not None)
        if of_levels and largest > LINEAR_NATS:
            axis.set_yscale("log")
        elif largest > 1000 * LINEAR_NATS:
            axis.set_yscale("symlog", linthresh=1.0)
        axis.set_title(f"{metric}, mean size over levels" if of_levels else metric, fontsize=9)
        axis.set_xlabel("step", fontsize=SMALLEST_POINTS)
        axis.tick_params(which="both", labelsize=SMALLEST_POINTS)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=SMALLEST_POINTS)
    return figure_png(figure, caption, label)
