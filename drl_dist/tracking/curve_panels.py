"""Curves of a run's metrics side by side, as a picture; needs matplotlib and nothing of MLflow."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from drl_dist.common.figures import SMALLEST_POINTS, figure_file, new_figure
from drl_dist.tracking.metrics import describe

DEFAULT_METRICS = ("loss", "log_density_gap", "displacement", "noise_error", "grad_norm")
BINS = 60
"""Points of a curve: means over equal ranges of steps, since single steps are mostly noise."""
MEDIAN_REACH = 7
"""Points on either side that the medians of a line are over; the points themselves are drawn faintly."""
LEAST_REACH = 3
"""The same at the ends of a line."""
MOST_LABELS = 8
LINEAR_NATS = 10
"""Log-density gaps beyond it are drawn on a logarithmic scale: those of level 0 are a hundred times the others."""
_LEVEL = re.compile(r"/level_(\S+)$")
_FIRST_LEVEL = re.compile(r"/level_(\d+)")

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and means, (points,) each."""


def without_level(name: str) -> str:
    """The metric that levels share: ``displacement`` of ``displacement/level_3``."""
    return _LEVEL.sub("", name)


def in_order_of_levels(names: Iterable[str]) -> list[str]:
    """Names of a metric at each level, or band of levels, by number: level_10 comes after level_9, not level_1."""

    def first_level(name: str) -> tuple[int, str]:
        found = _FIRST_LEVEL.search(name)
        return (int(found[1]) if found else -1, name)

    return sorted(names, key=first_level)


def binned(history: Mapping[int, float]) -> Curve:
    """Means over `BINS` ranges of steps.

    Args:
        history: finite values by step.
    """
    steps = np.array(sorted(history), dtype=np.float64)
    values = np.array([history[int(step)] for step in steps])
    parts = np.array_split(np.arange(len(steps)), min(BINS, len(steps)))
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])


def moving_median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each value and its neighbours: what single ones do may be larger than all change."""
    # At the ends over as few on the inner side as on the outer one, or the beginning of a fall would look flat.
    ends = (min(place, len(values) - 1 - place) for place in range(len(values)))
    reach = (max(LEAST_REACH, min(MEDIAN_REACH, end)) for end in ends)
    return np.array([np.median(values[max(0, place - far) : place + far + 1]) for place, far in enumerate(reach)])


def curves_caption(run_name: str, panels: Mapping[str, Mapping[str, Curve]], seed: int | str | None) -> str:
    """What a picture of curves shows, of which run, up to which step, with which seed if it is known."""
    last = max(float(steps[-1]) for lines in panels.values() for steps, _ in lines.values())
    parts = [f"curves of run {run_name}", f"up to about step {last:.0f}, means over ranges of steps, with medians"]
    return ", ".join(parts if seed is None else [*parts, f"seed {seed}"])


def draw_panels(panels: Mapping[str, Mapping[str, Curve]], kind: str, caption: str, label: str) -> bytes:
    """A panel for each metric, with a line for each of its levels, at most three side by side.

    Args:
        panels: metric -> name -> curve; at least one.
        kind: png, svg or pdf.
        caption: above the panels; see `curves_caption`.
        label: what the picture shows, kept in its metadata.
    """
    import matplotlib as mpl

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    # At least as wide as a picture is to be; a single panel need not be larger than that.
    figure = new_figure(max(6.8, 4.2 * columns), 0.5 + 3.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (metric, lines) in zip(axes.flat, panels.items(), strict=False):
        colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(lines))).tolist()
        ordered = in_order_of_levels(lines)
        for colour, name in zip(colours, ordered, strict=True):
            (steps, values), level = lines[name], _LEVEL.search(name)
            # Sixteen bands of levels would hide the curves: colours run from the first to the last.
            is_labelled = level and (len(lines) <= MOST_LABELS or name in (ordered[0], ordered[-1]))
            axis.plot(steps, values, color=colour, linewidth=0.6, alpha=0.2 if len(lines) > 1 else 0.4)
            label_of_line = f"level {level[1]}" if level and is_labelled else None
            axis.plot(steps, moving_median(values), color=colour, linewidth=1.1, label=label_of_line)
        if len(lines) > 1:
            # Below the panel: within it, it would cover curves.
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "frameon": False}
            axis.legend(fontsize=SMALLEST_POINTS, ncols=4, **below)
        if metric == "log_density_gap" and any(np.abs(values).max() > LINEAR_NATS for _, values in lines.values()):
            axis.set_yscale("symlog", linthresh=LINEAR_NATS)
        axis.set_title(
            textwrap.fill(describe(f"{metric}/level_0") or describe(metric) or metric, 60), fontsize=SMALLEST_POINTS
        )
        axis.set_xlabel("step", fontsize=SMALLEST_POINTS)
        # Logarithmic axes have small ticks with labels, too.
        axis.tick_params(which="both", labelsize=SMALLEST_POINTS)
        axis.grid(alpha=0.3)
    return figure_file(figure, caption, kind, label)
