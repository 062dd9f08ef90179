"""Figures with captions, as files that can be read on light and on dark pages; needs matplotlib."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

from drl_dist.common.images import MIN_WIDTH

if TYPE_CHECKING:
    # matplotlib takes a second to import, and most processes draw nothing.
    from matplotlib.figure import Figure

DOTS_PER_INCH = 120
CAPTION_POINTS = 10
SMALLEST_POINTS = 8
"""Size of labels, 13 pixels at `DOTS_PER_INCH`; nothing in a figure is smaller."""
_CHARACTERS_PER_INCH = 12
"""Of a caption, with some room left: letters are about half as wide as high."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, on white paper whatever the page behind it."""
    # The figure itself, not pyplot, which would keep it and look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def figure_png(figure: Figure, caption: str, description: str | None = None) -> bytes:
    """See `figure_file`."""
    return figure_file(figure, caption, "png", description)


def figure_file(figure: Figure, caption: str, kind: str, description: str | None = None) -> bytes:
    """A figure with its caption above it, at least `MIN_WIDTH` pixels wide.

    Args:
        figure: of `new_figure`.
        caption: what is shown, of which model or run, at which step, with which seed; wrapped to the figure's width.
        kind: png, svg or pdf.
        description: kept in the file's metadata beside the caption, its title; by default the caption too.
    """
    width = figure.get_figwidth()
    lines = textwrap.wrap(caption, max(1, int(width * _CHARACTERS_PER_INCH)))
    # The names of runs are text, also those with a dollar.
    figure.suptitle("\n".join(lines), fontsize=CAPTION_POINTS, parse_math=False)
    metadata: dict[str, Any] = {"Title": caption, "Subject" if kind == "pdf" else "Description": description or caption}
    if kind == "png":
        # The name of the program that drew it would differ between versions of it.
        metadata["Software"] = None
    buffer = io.BytesIO()
    dpi = max(DOTS_PER_INCH, -(-MIN_WIDTH // width))
    figure.savefig(buffer, format=kind, dpi=dpi, facecolor="white", transparent=False, metadata=metadata)
    return buffer.getvalue()
