"""Curves of a run's metrics side by side, as a picture; needs matplotlib and nothing of MLflow."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from drl_dist.tracking.metrics import describe

DEFAULT_METRICS = ("loss", "log_density_gap", "displacement", "noise_error", "grad_norm")
BINS = 60
"""Points of a curve: means over equal ranges of steps, since single steps are mostly noise."""
MOST_LABELS = 8
LINEAR_NATS = 10
"""Log-density gaps beyond it are drawn on a logarithmic scale: those of level 0 are a hundred times the others."""
_LEVEL = re.compile(r"/level_(\S+)$")

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and means, (points,) each."""


def without_level(name: str) -> str:
    """The metric that levels share: ``displacement`` of ``displacement/level_3``."""
    return _LEVEL.sub("", name)


def binned(history: Mapping[int, float]) -> Curve:
    """Means over `BINS` ranges of steps.

    Args:
        history: finite values by step.
    """
    steps = np.array(sorted(history), dtype=np.float64)
    values = np.array([history[int(step)] for step in steps])
    parts = np.array_split(np.arange(len(steps)), min(BINS, len(steps)))
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])


def draw_panels(panels: Mapping[str, Mapping[str, Curve]], kind: str, label: str) -> bytes:
    """A panel for each metric, with a line for each of its levels.

    Args:
        panels: metric -> name -> curve; at least one.
        kind: png, svg or pdf.
        label: what the picture shows, kept in its metadata.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False)
    for axis, (metric, lines) in zip(axes[0], panels.items(), strict=True):
        colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(lines))).tolist()
        for colour, (name, (steps, values)) in zip(colours, lines.items(), strict=True):
            level = _LEVEL.search(name)
            # Sixteen bands of levels would hide the curves: colours run from the first to the last.
            is_labelled = level and (len(lines) <= MOST_LABELS or name in (min(lines), max(lines)))
            axis.plot(
                steps, values, color=colour, linewidth=1, label=f"level {level[1]}" if level and is_labelled else None
            )
        if len(lines) > 1:
            axis.legend(fontsize=6)
        if metric == "log_density_gap" and any(np.abs(values).max() > LINEAR_NATS for _, values in lines.values()):
            axis.set_yscale("symlog", linthresh=LINEAR_NATS)
        axis.set_title(describe(f"{metric}/level_0") or describe(metric) or metric, fontsize=7, wrap=True)
        axis.set_xlabel("step", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    buffer = io.BytesIO()
    metadata = {"Subject" if kind == "pdf" else "Description": label}
    figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
    pyplot.close(figure)
    return buffer.getvalue()
