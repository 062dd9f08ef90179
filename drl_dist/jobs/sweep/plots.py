"""The sweep's result as pictures: score against each hyperparameter, parallel coordinates, learning curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from drl_dist.common.figures import SMALLEST_POINTS, figure_png, new_figure
from drl_dist.jobs.sweep.space import Range, Space
from drl_dist.jobs.sweep.table import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS = ("score_against_hyperparameters.png", "parallel_coordinates.png", "learning_curves.png")
"""Names of the pictures."""
COLOURS = {
    "finished": "tab:blue",
    "stopped": "tab:orange",
    "diverged": "tab:red",
    "failed": "tab:gray",
    "unfinished": "tab:gray",
}
_NAMES = {
    "model.num_res_blocks": "N (model.num_res_blocks)",
    "optim.beta1": r"$\beta_1$ (optim.beta1)",
    "mcmc.level_scale": "$c_t$ (mcmc.level_scale)",
}
_SCORE = "KID"
# Above all scores, where diverged trials are drawn: they have none.
_HEADROOM = 0.12
_SYMLOG_BELOW = 20.0


def make_plots(rows: Sequence[Row], space: Space, caption: str) -> dict[str, bytes]:
    """PNG files by name.

    Args:
        rows: all trials, those without a score too.
        space: what was varied.
        caption: of which sweep they are.
    """
    figures = {
        f"{_SCORE} against each hyperparameter": _against(rows, space),
        f"trials by {_SCORE}, in parallel coordinates": _parallel(rows, space),
        f"{_SCORE} of trials as they train": _curves(rows),
    }
    return {
        name: figure_png(figure, f"{what}: {caption}")
        for name, (what, figure) in zip(PLOTS, figures.items(), strict=True)
    }


def places(name: str, space: Space, values: Sequence[Any]) -> tuple[np.ndarray, list[float], list[str]]:
    """Where values lie on their axis.

    Returns:
        one place per value (N,), and the places and labels of the axis's ticks. Choices are evenly spaced in the
        order of the space; ranges are true to scale, in logarithms if they were drawn so.
    """
    one = space.dimensions[name]
    if isinstance(one, Range):
        is_log = one.kind == "loguniform"
        ticks = np.geomspace(one.low, one.high, 4) if is_log else np.linspace(one.low, one.high, 4)
        numbers = np.array(values, dtype=np.float64)
        return (
            np.log10(numbers) if is_log else numbers,
            list(np.log10(ticks) if is_log else ticks),
            [f"{tick:.3g}" for tick in ticks],
        )
    known = [json.dumps(value, sort_keys=True) for value in one.values]
    at = np.array([known.index(json.dumps(value, sort_keys=True)) for value in values], dtype=np.float64)
    return at, [float(place) for place in range(len(known))], [label(value) for value in one.values]


def label(value: Any) -> str:
    """A value as its tick says it."""
    if isinstance(value, dict) and "power" in value:
        factor = f"{value['multiplier']:g}·" if "multiplier" in value else ""
        return f"{factor}power {value['power']:g}"
    if isinstance(value, list):
        return "[" + ", ".join(f"{one:g}" if isinstance(one, float | int) else str(one) for one in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _against(rows: Sequence[Row], space: Space) -> Figure:
    names = list(space.dimensions)
    figure = new_figure(max(7.0, 3.6 * len(names) + 0.6), 4.2)
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)
    scored = [row for row in rows if row.score is not None]
    diverged = [row for row in rows if row.status == "diverged"]
    scores = [row.score for row in scored if row.score is not None]
    top = _top(scores)
    for axis, name in zip(axes[0], names, strict=True):
        for status, colour in COLOURS.items():
            some = [row for row in scored if row.status == status]
            if some:
                at, _, _ = places(name, space, [row.trial.values[name] for row in some])
                axis.scatter(at, [row.score for row in some], s=24, color=colour, alpha=0.7, label=status)
        if diverged:
            at, _, _ = places(name, space, [row.trial.values[name] for row in diverged])
            axis.scatter(_apart(at), [top] * len(at), marker="x", s=30, color=COLOURS["diverged"], label="diverged")
        _, ticks, labels = places(name, space, [])
        axis.set_xticks(ticks, labels, fontsize=SMALLEST_POINTS, rotation=30 if max(map(len, labels)) > 6 else 0)
        axis.set_xlabel(_NAMES.get(name, name), fontsize=SMALLEST_POINTS)
        axis.grid(alpha=0.3)
        axis.tick_params(axis="y", which="both", labelsize=SMALLEST_POINTS)
        _scale(axis, scores)
    axes[0][0].set_ylabel(f"last {_SCORE} (smaller is better)", fontsize=SMALLEST_POINTS)
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, fontsize=SMALLEST_POINTS, ncols=4, loc="outside lower center", frameon=False)
    return figure


def _parallel(rows: Sequence[Row], space: Space) -> Figure:
    import matplotlib as mpl

    names = list(space.dimensions)
    scored = sorted((row for row in rows if row.score is not None), key=lambda row: -(row.score or 0.0))
    figure = new_figure(max(7.0, 2.2 * (len(names) + 1) + 2), 4.8)
    axis = figure.subplots()
    order = {row.trial.number: place for place, row in enumerate(scored)}
    colours = mpl.colormaps["viridis"]
    heights: dict[str, tuple[float, float]] = {}
    for place, name in enumerate(names):
        _, ticks, labels = places(name, space, [])
        low, high = min(ticks), max(ticks)
        heights[name] = (low, (high - low) or 1.0)
        axis.axvline(place, color="black", linewidth=0.8)
        for tick, text in zip(ticks, labels, strict=True):
            at = _height(tick, heights[name])
            # Beside the axis and on paper of its own, above the lines that end there.
            box = {"facecolor": "white", "edgecolor": "0.8", "linewidth": 0.4, "boxstyle": "round,pad=0.2"}
            axis.text(place - 0.03, at, text, fontsize=SMALLEST_POINTS, va="center", ha="right", zorder=5, bbox=box)
    for row in [row for row in rows if row.score is None] + scored:
        path = [
            _height(float(places(name, space, [row.trial.values[name]])[0][0]), heights[name])
            + _shift(row) * (1 if len(rows) > 1 else 0)
            for name in names
        ]
        if row.score is None:
            axis.plot(range(len(names)), path, color=COLOURS[row.status], linestyle=":", linewidth=1.2)
            continue
        rank = order[row.trial.number]
        # By rank, best on top and darkest: scores may differ by orders of magnitude.
        share = rank / max(1, len(scored) - 1)
        axis.plot(
            range(len(names) + 1),
            [*path, share],
            color=colours(1 - share),
            linewidth=2.0 if rank == len(scored) - 1 else 1.2,
            linestyle="-" if row.status == "finished" else "--",
        )
    axis.axvline(len(names), color="black", linewidth=0.8)
    axis.set_xticks(
        range(len(names) + 1),
        [*(_NAMES.get(name, name) for name in names), f"last {_SCORE}, by rank"],
        fontsize=SMALLEST_POINTS,
    )
    axis.set_yticks([])
    axis.set_xlim(-0.35, len(names) + 0.05)
    if scored:
        _rank_scale(figure, axis, [row.score or 0.0 for row in scored])
    for side in ("left", "right", "top", "bottom"):
        axis.spines[side].set_visible(False)
    axis.set_title("solid: finished, dashed: stopped early, dotted red: diverged", fontsize=SMALLEST_POINTS)
    return figure


def _rank_scale(figure: Figure, axis: Any, scores: Sequence[float]) -> None:
    """The colour of every rank, with the scores that they stand for, best on top.

    Args:
        figure, axis: of the lines.
        scores: of all lines, the worst first.
    """
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    # The last line of the list is the best, and darkest; see the colours of the lines.
    scale = ScalarMappable(Normalize(0, 1), mpl.colormaps["viridis"].reversed())
    bar = figure.colorbar(scale, ax=axis, pad=0.02)
    chosen = sorted({round(place * (len(scores) - 1) / 7) for place in range(8)})
    most = max(1, len(scores) - 1)
    bar.set_ticks([place / most for place in chosen], labels=[f"{scores[place]:.3g}" for place in chosen])
    bar.ax.tick_params(labelsize=SMALLEST_POINTS)
    bar.set_label(f"last {_SCORE} of the rank (smaller is better)", fontsize=SMALLEST_POINTS)


def _curves(rows: Sequence[Row]) -> Figure:
    figure = new_figure(8, 4.8)
    axis = figure.subplots()
    seen: set[str] = set()
    scores: list[float] = []
    for row in rows:
        points = row.curve.points
        if points:
            images, values = [point.images_seen for point in points], [point.score for point in points]
            scores += values
            axis.plot(
                images,
                values,
                color=COLOURS[row.status],
                linewidth=1.2,
                marker=".",
                alpha=0.8,
                label=None if row.status in seen else row.status,
            )
            seen.add(row.status)
            axis.annotate(f" {row.trial.number}", (images[-1], values[-1]), fontsize=SMALLEST_POINTS)
    top = _top(scores)
    diverged = [row for row in rows if row.status == "diverged" and row.outcome is not None]
    for place, row in enumerate(diverged):
        assert row.outcome is not None
        at = (row.outcome.images_seen, top)
        axis.scatter([at[0]], [at[1]], marker="x", color=COLOURS["diverged"], s=30)
        # One below the other: trials of one kind diverge at about the same step.
        offset = (5, -10 * place)
        axis.annotate(
            f"{row.trial.number} diverged", at, xytext=offset, textcoords="offset points", fontsize=SMALLEST_POINTS
        )
    _scale(axis, scores)
    axis.set_xlabel("images seen", fontsize=SMALLEST_POINTS)
    axis.set_ylabel(f"{_SCORE} (smaller is better)", fontsize=SMALLEST_POINTS)
    axis.tick_params(which="both", labelsize=SMALLEST_POINTS)
    axis.grid(alpha=0.3)
    if seen:
        axis.legend(fontsize=SMALLEST_POINTS)
    return figure


def _scale(axis: Any, scores: Sequence[float]) -> None:
    """Logarithmic where scores differ by much; KID may fall below 0."""
    positive = [score for score in scores if score > 0]
    if positive and max(positive) > _SYMLOG_BELOW * min(positive):
        axis.set_yscale("symlog", linthresh=min(positive)) if len(positive) < len(scores) else axis.set_yscale("log")


def _top(scores: Sequence[float]) -> float:
    return max(scores) + _HEADROOM * ((max(scores) - min(scores)) or abs(max(scores)) or 1.0) if scores else 1.0


def _shift(row: Row) -> float:
    """A little, so that equal choices do not hide each other; fixed by the trial's number."""
    return 0.03 * ((row.trial.number * 0.618034) % 1.0 - 0.5)


def _apart(at: np.ndarray) -> np.ndarray:
    """Places side by side where they would hide each other, around the tick that they belong to."""
    moved = at.copy()
    for place in np.unique(at):
        here = np.flatnonzero(at == place)
        moved[here] += 0.03 * (np.arange(len(here)) - (len(here) - 1) / 2)
    return moved


def _height(place: float, low_and_span: tuple[float, float]) -> float:
    low, span = low_and_span
    return (place - low) / span
