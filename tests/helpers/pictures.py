"""Pictures of all depths, and the pixels that they show."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from drl_dist.data.pixels.pictures import PixelRules, read_picture

RAMP = np.array([[0, 1, 128, 129, 256, 4095, 32768, 65535]], np.uint16)


RAMP_8 = [[0, 0, 0, 1, 1, 16, 128, 255]]
"""v / 257, rounded."""


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def shown(data: bytes, mode: str = "L", **rules: object) -> tuple[list[object], tuple[str, ...]]:
    picture = read_picture(data, PixelRules(**rules))
    return np.asarray(picture.image.convert(mode)).tolist(), picture.treated
