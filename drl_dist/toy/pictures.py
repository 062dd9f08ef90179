"""The two pictures of a study, as PNG files; the only part that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from drl_dist.common.amounts import counted
from drl_dist.common.figures import SMALLEST_POINTS, figure_png, new_figure
from drl_dist.toy.density import Grid
from drl_dist.toy.study import Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VIEW = 3.0
"""Pictures show [-3, 3]**2; the few points beyond are counted in the picture."""
_PANEL_INCHES = 1.9


def levels_picture(fit: Fit, grid: Grid, caption: str) -> bytes:
    """Figure 3 as a PNG: from white noise to data, with samples above, learned densities below, exact ones at the
    bottom.

    Args:
        fit: result of diffusion recovery likelihood.
        grid: grid of its densities.
        caption: above the picture: what it shows, after how many steps, with which seed.
    """
    num_levels = fit.model.levels.num_levels
    figure, axes = _panels(3, num_levels + 1)
    for column in range(num_levels + 1):
        t = num_levels - column
        _points(axes[0][column], fit.stages[column])
        axes[0][column].set_title(f"$x_{{{t}}}$" + (" (white noise)" if t == num_levels else ""))
        if t < num_levels:
            _density(axes[1][column], fit.learned[t], fit.exact[t], grid)
        else:
            # There is no energy of white noise, where the chain starts.
            axes[1][column].axis("off")
        _density(axes[2][column], fit.exact[t], fit.exact[t], grid)
    for row, text in zip(axes, ("samples", "learned density", "exact density"), strict=True):
        row[0].text(-0.12, 0.5, text, rotation=90, ha="center", va="center", transform=row[0].transAxes)
    return figure_png(figure, caption)


def comparison_picture(drl: Fit, short_run: Fit, data: Tensor, grid: Grid, caption: str) -> bytes:
    """Figure 2 as a PNG: the data and, for both methods, the learned density, samples by the chain of training, and
    samples of long runs on the learned density.

    Args:
        drl, short_run: results of both methods on the same data.
        data: points of the data, (N, 2).
        grid: grid of the densities.
        caption: above the picture: what it shows, after how many steps, with which seed.
    """
    figure, axes = _panels(2, 4)
    exact = drl.exact[0]
    _density(axes[0][0], exact, exact, grid)
    axes[0][0].set_title("exact density", fontsize=10)
    _points(axes[1][0], data[: len(drl.stages[-1])])
    axes[1][0].set_title("data", fontsize=10)
    for row, fit, label in zip(axes, (drl, short_run), ("recovery", "short-run"), strict=True):
        _density(row[1], fit.learned[0], exact, grid)
        row[1].set_title(f"{label}: learned density", fontsize=10)
        _points(row[2], fit.stages[-1])
        row[2].set_title(f"{label}: samples", fontsize=10)
        _points(row[3], fit.marginal_run)
        row[3].set_title(f"{label}: {counted(fit.num_long, 'step')} on", fontsize=10)
    return figure_png(figure, caption)


def _panels(rows: int, columns: int) -> tuple[Figure, Sequence[Sequence[Axes]]]:
    figure = new_figure(_PANEL_INCHES * columns, _PANEL_INCHES * rows + 0.6)
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _points(axes: Axes, points: Tensor) -> None:
    """Draw points (B, 2), and write the number of points outside the picture, or not finite, into it."""
    is_inside = (points.abs() <= _VIEW).all(dim=1)
    shown, outside = points[is_inside], int((~is_inside).sum())
    axes.scatter(shown[:, 0].numpy(), shown[:, 1].numpy(), s=1.0 if len(points) > 1000 else 4.0, linewidths=0)
    if outside:
        paper = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
        told = f"{outside} of {len(points)} outside"
        axes.text(0.03, 0.03, told, transform=axes.transAxes, fontsize=SMALLEST_POINTS, bbox=paper)
    _frame(axes)


def _density(axes: Axes, masses: Tensor, exact: Tensor, grid: Grid) -> None:
    """Draw cell masses on a colour scale that ends a quarter above the exact maximum; higher peaks saturate."""
    extent = (-grid.half_width, grid.half_width, -grid.half_width, grid.half_width)
    axes.imshow(masses.mT.numpy(), origin="lower", extent=extent, vmin=0, vmax=1.25 * float(exact.max()))
    _frame(axes)


def _frame(axes: Axes) -> None:
    axes.set(xlim=(-_VIEW, _VIEW), ylim=(-_VIEW, _VIEW), xticks=[], yticks=[])
    axes.set_aspect("equal")
