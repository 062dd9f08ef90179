"""Panels of curves: the order, the colours and the legend of noise levels, and what the lines of pictures are over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from drl_dist.console import compare
from drl_dist.jobs.sweep import plots
from drl_dist.jobs.sweep.space import parse_space
from drl_dist.tracking import curve_panels
from drl_dist.tracking.curve_panels import Curve, draw_panels, in_order_of_levels, moving_median
from tests.sweeps.makers import plan, row


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are made into files."""
    made: list[Figure] = []

    def keep(figure: Figure, *_: object) -> bytes:
        made.append(figure)
        return b""

    monkeypatch.setattr(curve_panels, "figure_file", keep)
    monkeypatch.setattr(compare, "figure_png", keep)
    monkeypatch.setattr(plots, "figure_png", keep)
    return made


def sizes(figure: Figure) -> set[float]:
    """Of the labels of all ticks, also those between powers of ten."""
    ticks = [
        tick
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
    ]
    return {float(tick.label1.get_fontsize()) for tick in ticks}


def test_medians_pass_over_single_values_and_keep_a_steep_beginning() -> None:
    values = np.full(60, 2.0)
    values[::4] = 100.0
    assert moving_median(values)[4:-4].tolist() == [2.0] * 52
    falling = np.linspace(100, 0, 60)
    np.testing.assert_allclose(moving_median(falling)[7:-7], falling[7:-7])
    assert abs(moving_median(falling)[0] - 100) < 3
    assert moving_median(np.array([5.0])).tolist() == [5.0]


def test_the_legend_covers_no_curve(figures: list[Figure]) -> None:
    steps = np.arange(60.0)
    lines: dict[str, Curve] = {f"displacement/level_{level}": (steps, steps * level) for level in range(3)}
    draw_panels({"displacement": lines, "loss": {"loss": (steps, steps)}}, "png", "a", "a")
    (figure,) = figures
    figure.canvas.draw()
    first, second = figure.axes
    legend = first.get_legend()
    assert legend is not None and second.get_legend() is None
    assert [text.get_text() for text in legend.get_texts()] == ["level 0", "level 1", "level 2"]
    assert legend.get_window_extent().y1 < first.get_window_extent().y0


def test_ticks_of_logarithmic_axes_have_one_size(figures: list[Figure]) -> None:
    steps = np.arange(60.0)
    draw_panels({"log_density_gap": {"log_density_gap/level_0": (steps, 10 * steps)}}, "png", "a", "a")
    compare._draw({"log_density_gap": [(steps, 1 + 10 * steps), None]}, ["a", "b"], "a", "a")
    for figure in figures:
        assert len(sizes(figure)) == 1


def test_levels_that_a_step_lacks_count_with_what_they_had() -> None:
    # Level 1 moves ten times as far, and every other step has no image of it.
    series = {
        "displacement/level_0": {step: 0.1 for step in range(1, 9)},
        "displacement/level_1": {step: -1.0 for step in range(2, 9, 2)} | {3: float("nan")},
        "loss": {1: -2.0},
    }
    assert compare.mean_sizes(series) == {
        "displacement": {step: pytest.approx(0.55) for step in range(1, 9)},
        "loss": {1: -2.0},
    }


def test_dots_of_choices_lie_on_their_ticks(figures: list[Figure], tmp_path: Path) -> None:
    space = parse_space({"optim.learning_rate": [0.001, 0.002]}, plan(tmp_path).base)
    values = [{"optim.learning_rate": 0.001}, {"optim.learning_rate": 0.002}]
    rows = [row(number, values[number % 2], "finished", 3.0, 1.0 + number) for number in range(4)]
    rows += [row(number, values[0], "diverged") for number in (4, 5, 6)]
    plots.make_plots(rows, space, "s")
    axis = figures[0].axes[0]
    dots, crosses = (np.asarray(points.get_offsets())[:, 0] for points in axis.collections)
    assert dots.tolist() == [0, 1, 0, 1]
    # Those that diverged have no height of their own: side by side, around their tick.
    assert sorted(crosses) == pytest.approx([-0.03, 0, 0.03])
    assert len(sizes(figures[0])) == 1


def test_levels_are_in_the_order_of_their_numbers() -> None:
    names = [f"displacement/level_{level}" for level in range(12)]
    assert in_order_of_levels(sorted(names)) == names != sorted(names)
    bands = [f"noise_error/level_{first}-{first + 9}" for first in range(0, 1100, 10)]
    assert in_order_of_levels(sorted(bands)) == bands
    assert in_order_of_levels(["loss"]) == ["loss"]


def test_colours_and_legend_run_from_the_first_level_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []

    def kept(figure: Figure, *_: Any) -> bytes:
        drawn.append(figure)
        return b""

    monkeypatch.setattr(curve_panels, "figure_file", kept)
    # Each curve is at the height of its level, in the order of text, in which tables of metrics are.
    lines: dict[str, Curve] = {
        name: (np.array([1.0, 2.0]), np.full(2, float(name.rpartition("_")[2])))
        for name in sorted(f"displacement/level_{level}" for level in range(12))
    }
    draw_panels({"displacement": lines}, "png", "caption", "label")
    axis = drawn[0].axes[0]
    # Faint single values, and their median over them.
    assert [np.asarray(line.get_ydata())[0] for line in axis.lines] == [level for level in range(12) for _ in range(2)]
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, 12)).tolist()
    assert [line.get_color() for line in axis.lines[::2]] == [line.get_color() for line in axis.lines[1::2]] == colours
    _, labels = axis.get_legend_handles_labels()
    assert labels == ["level 0", "level 11"]
