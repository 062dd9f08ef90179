"""Contact sheets with captions, at least 800 pixels wide, from which the images can be read again."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from drl_dist.common.images import MIN_WIDTH, Panel, grid

KEY = "drl_dist.sheet"
"""Of the PNG text that says where the images lie."""
_PADDING, _MARGIN, _TEXT, _LINE = 2, 16, 18, 22
_MAX_TILE = 256
"""Small images are not enlarged beyond it, in pixels: a few of them would make a huge sheet."""
# A page behind it may be light or dark: the sheet brings its own paper.
_PAPER, _INK = (255, 255, 255), (32, 32, 32)


def sheet_of(panels: Sequence[Panel], caption: str) -> bytes:
    """A PNG of panels beside each other, of images of one size, each pixel repeated as often as the width asks for.

    Args:
        panels: from left to right.
        caption: what is shown: model, step, seed.
    """
    columns = [panel.columns or math.ceil(math.sqrt(len(panel.images))) for panel in panels]
    height, width = panels[0].images.shape[-2:]
    font = ImageFont.load_default(_TEXT)
    # What rows are called stands to their left.
    indents = [math.ceil(max(map(font.getlength, panel.row_names), default=-_MARGIN)) + _MARGIN for panel in panels]
    gaps = _MARGIN * (len(panels) + 1) + _PADDING * (sum(columns) + len(panels)) + sum(indents)
    enlarge = math.ceil((MIN_WIDTH - gaps) / (width * sum(columns)))
    enlarge = max(1, min(enlarge, _MAX_TILE // max(height, width)))
    sheets = [
        grid(panel.images, across, enlarge=enlarge, padding=_PADDING)
        for panel, across in zip(panels, columns, strict=True)
    ]
    needed = sum(sheet.shape[1] + _MARGIN for sheet in sheets) + _MARGIN + sum(indents)
    total = max(MIN_WIDTH, needed)
    lines = _wrapped(caption, total - 2 * _MARGIN)
    # A title may be as wide as its images, and that of the last panel as the paper beside them too.
    room = [sheet.shape[1] for sheet in sheets]
    room[-1] += total - needed
    titles = [_wrapped(panel.title, across) for panel, across in zip(panels, room, strict=True)]
    top_of_titles = _MARGIN + len(lines) * _LINE + 8
    top = top_of_titles + max(map(len, titles)) * _LINE
    page = Image.new("RGB", (total, top + max(map(len, sheets)) + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(page)

    def write(text: Sequence[str], left: int, top: int) -> None:
        for number, line in enumerate(text):
            pen.text((left, top + number * _LINE), line, fill=_INK, font=font)

    write(lines, _MARGIN, _MARGIN)
    left, found = _MARGIN, list[dict[str, object]]()
    for panel, across, sheet, title, indent in zip(panels, columns, sheets, titles, indents, strict=True):
        left += indent
        write(title, left, top - len(title) * _LINE)
        for row, name in enumerate(panel.row_names):
            middle = top + _PADDING + row * (height * enlarge + _PADDING) + (height * enlarge - _TEXT) // 2
            write([name], left - indent, middle)
        page.paste(Image.fromarray(sheet), (left, top))
        count, channels = panel.images.shape[:2]
        found.append(
            {
                "title": panel.title,
                "left": left + _PADDING,
                "top": top + _PADDING,
                "height": height,
                "width": width,
                "channels": channels,
                "enlarge": enlarge,
                "padding": _PADDING,
                "columns": across,
                "count": count,
            }
        )
        left += sheet.shape[1] + _MARGIN
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", caption.encode("ascii", "replace").decode())
    text.add_text(KEY, json.dumps({"caption": caption, "panels": found}))
    buffer = io.BytesIO()
    page.save(buffer, format="PNG", compress_level=6, pnginfo=text)
    return buffer.getvalue()


def images_in(picture: Image.Image) -> dict[str, Tensor] | None:
    """The images of a sheet of `sheet_of`, uint8 (N, C, H, W) by the title of their panel; None of another picture."""
    text = picture.info.get(KEY)
    if not isinstance(text, str):
        return None
    pixels, found = np.asarray(picture.convert("RGB")), dict[str, Tensor]()
    for panel in json.loads(text)["panels"]:
        enlarge, padding, columns = panel["enlarge"], panel["padding"], panel["columns"]
        height, width = panel["height"] * enlarge, panel["width"] * enlarge
        tiles: list[np.ndarray] = []
        for number in range(panel["count"]):
            top = panel["top"] + number // columns * (height + padding)
            left = panel["left"] + number % columns * (width + padding)
            tiles.append(pixels[top : top + height : enlarge, left : left + width : enlarge, : panel["channels"]])
        found[panel["title"]] = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()
    return found


def _wrapped(text: str, width: int) -> list[str]:
    """Text in lines of at most so many pixels, as far as its words allow."""
    font, lines = ImageFont.load_default(_TEXT), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
