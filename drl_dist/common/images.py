"""Conversion between uint8 and float images, and contact sheets as arrays, which callers write to files or trackers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SHOWN_PIXELS = 32
MIN_WIDTH = 800
"""Of a picture that is written for people, in pixels."""
PROGRESSION_TITLE = "each row: from white noise, left, to a sample, right"
"""Of a sheet with a row for each image and a column for each level shown."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Images to be shown side by side under a title."""

    title: str
    images: Tensor
    """(N, C, H, W) uint8, C = 1 or 3; N at least 1."""
    columns: int | None = None
    """Images per row; by default about as many as there are rows."""
    row_names: tuple[str, ...] = ()
    """To the left of the rows, if they have names; as many as there are rows."""


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 images (B, C, H, W) as float32 in [-1, 1]: x / 127.5 - 1."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, C, H, W) of about [-1, 1] as uint8, clipped and rounded."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(images: Tensor, columns: int | None = None, *, enlarge: int = 1, padding: int = 2) -> np.ndarray:
    """A contact sheet.

    Args:
        images: (B, C, H, W) uint8, C = 1 or 3.
        columns: images per row; by default the sheet is about square.
        enlarge: times that each pixel is repeated in both directions.
        padding: white pixels around each image.

    Returns:
        (height, width, 3) uint8.
    """
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    pixels = images.cpu().repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    cell_height, cell_width = height * enlarge + padding, width * enlarge + padding
    sheet = np.full((rows * cell_height + padding, columns * cell_width + padding, 3), 255, np.uint8)
    for index, image in enumerate(pixels.expand(-1, 3, -1, -1) if channels == 1 else pixels):
        top = index // columns * cell_height + padding
        left = index % columns * cell_width + padding
        sheet[top : top + height * enlarge, left : left + width * enlarge] = image.permute(1, 2, 0).numpy()
    return sheet


def beside(left: np.ndarray, right: np.ndarray, gap: int = 16) -> np.ndarray:
    """Two sheets next to each other, white between and below them; (H, W, 3) uint8."""
    height = max(len(left), len(right))
    sheet = np.full((height, left.shape[1] + gap + right.shape[1], 3), 255, np.uint8)
    sheet[: len(left), : left.shape[1]] = left
    sheet[: len(right), left.shape[1] + gap :] = right
    return sheet


def enlargement(resolution: int) -> int:
    """Factor by which images of so many pixels are enlarged in sheets: more than 1 for small ones."""
    return max(1, _SHOWN_PIXELS // resolution)
