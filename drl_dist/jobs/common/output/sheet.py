"""Contact sheets with captions, at least 800 pixels wide, from which the images can be read again."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from drl_dist.common.images import grid

KEY = "drl_dist.sheet"
"""Of the PNG text that says where the images lie."""
MIN_WIDTH = 800
"""Of a sheet, in pixels."""
_PADDING, _MARGIN, _TEXT = 2, 16, 18
# A page behind it may be light or dark: the sheet brings its own paper.
_PAPER, _INK = (255, 255, 255), (32, 32, 32)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Images side by side under a title."""

    title: str
    images: Tensor
    """(N, C, H, W) uint8, C = 1 or 3; N at least 1."""
    columns: int | None = None
    """Images per row; by default about as many as there are rows."""


def sheet_of(panels: Sequence[Panel], caption: str) -> bytes:
    """A PNG of panels beside each other, of images of one size, each pixel repeated as often as the width asks for.

    Args:
        panels: from left to right.
        caption: what is shown: model, step, seed.
    """
    columns = [panel.columns or math.ceil(math.sqrt(len(panel.images))) for panel in panels]
    height, width = panels[0].images.shape[-2:]
    gaps = _MARGIN * (len(panels) + 1) + _PADDING * (sum(columns) + len(panels))
    enlarge = max(1, math.ceil((MIN_WIDTH - gaps) / (width * sum(columns))))
    sheets = [
        grid(panel.images, across, enlarge=enlarge, padding=_PADDING)
        for panel, across in zip(panels, columns, strict=True)
    ]
    top = _MARGIN + 2 * (_TEXT + 8)
    total = sum(sheet.shape[1] + _MARGIN for sheet in sheets) + _MARGIN
    lines = _wrapped(caption, total - 2 * _MARGIN)
    top += (len(lines) - 1) * (_TEXT + 4)
    page = Image.new("RGB", (total, top + max(map(len, sheets)) + _MARGIN), _PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_TEXT)
    for number, line in enumerate(lines):
        pen.text((_MARGIN, _MARGIN + number * (_TEXT + 4)), line, fill=_INK, font=font)
    left, found = _MARGIN, list[dict[str, object]]()
    for panel, across, sheet in zip(panels, columns, sheets, strict=True):
        pen.text((left, top - _TEXT - 6), panel.title, fill=_INK, font=font)
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
