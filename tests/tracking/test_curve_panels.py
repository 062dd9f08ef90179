"""Panels of curves: the order, the colours and the legend of noise levels, which are numbers."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from drl_dist.tracking import curve_panels
from drl_dist.tracking.curve_panels import Curve, draw_panels, in_order_of_levels


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
    assert [np.asarray(line.get_ydata())[0] for line in axis.lines] == list(range(12))
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, 12)).tolist()
    assert [line.get_color() for line in axis.lines] == colours
    _, labels = axis.get_legend_handles_labels()
    assert labels == ["level 0", "level 11"]
