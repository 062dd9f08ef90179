"""Figures with captions: width, text, and white paper whatever the page or the user's own style."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from drl_dist.common.figures import CAPTION_POINTS, SMALLEST_POINTS, figure_file, figure_png, new_figure
from drl_dist.common.images import MIN_WIDTH

CAPTION = "curves of run a$^$b, up to step 3, seed 0"


def drawn(width: float, caption: str = CAPTION) -> tuple[Figure, bytes]:
    figure = new_figure(width, 3)
    figure.subplots().plot([1, 2])
    return figure, figure_png(figure, caption)


@pytest.mark.parametrize(("width", "pixels"), [(2, MIN_WIDTH), (6.4, MIN_WIDTH), (9, 1080)])
def test_a_figure_is_wide_enough_and_says_what_it_shows(width: float, pixels: int) -> None:
    figure, png = drawn(width)
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width == pixels
        assert picture.info["Description"] == CAPTION and "Software" not in picture.info
    assert figure.get_suptitle().replace("\n", " ") == CAPTION


def test_captions_are_wrapped_to_the_figure() -> None:
    figure, _ = drawn(7, "a long caption, " * 20)
    assert figure.get_suptitle().count("\n") >= 3
    box = figure.findobj(lambda artist: getattr(artist, "get_text", str)() == figure.get_suptitle())[0]
    extent = box.get_window_extent(figure.canvas.get_renderer())  # pyright: ignore[reportAttributeAccessIssue]
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1


def test_letters_are_large_enough_to_read() -> None:
    assert CAPTION_POINTS * 120 / 72 >= 16 and SMALLEST_POINTS * 120 / 72 >= 13
    # The caption's letters themselves: dark rows near the upper edge.
    _, png = drawn(8)
    with Image.open(io.BytesIO(png)) as picture:
        rows = (np.asarray(picture.convert("L"))[:30] < 128).any(axis=1)
    assert 12 <= rows.sum() <= 24


@pytest.mark.parametrize("style", [{}, {"savefig.transparent": True, "figure.facecolor": "black"}])
def test_paper_is_white_on_any_page(style: dict[str, object]) -> None:
    with rc_context(style):
        _, png = drawn(8)
    with Image.open(io.BytesIO(png)) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    assert (pixels[..., 3] == 255).all() and (pixels[0] == 255).all() and (pixels[:, 0] == 255).all()


def test_other_kinds_have_the_description_too() -> None:
    figure, _ = drawn(8)
    assert b"what it shows" in figure_file(figure, CAPTION, "svg", "what it shows")
    assert b"what it shows" in figure_file(figure, CAPTION, "pdf", "what it shows")
