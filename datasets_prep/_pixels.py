"""Conversion of a source's images to square 8-bit pixels, and reports on images that needed further treatment."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from datasets_prep._source import Encoded
from drl_dist.common.errors import UserError
from drl_dist.data.pixels.depth import CLIPPED, DARK, SCALED
from drl_dist.data.pixels.pictures import TRANSPARENT, PixelRules, decoding, read_picture


def pixel_rules(options: object) -> PixelRules:
    """The rules set by a command's options, with defaults for missing ones.

    Raises:
        UserError: the colour or the range is invalid.
    """
    background, value_range = getattr(options, "background", None), getattr(options, "value_range", None)
    if value_range is not None and not (all(map(math.isfinite, value_range)) and value_range[0] < value_range[1]):
        raise UserError(
            "--value-range",
            got=" ".join(f"{value:g}" for value in value_range),
            expected="the value of black, then the larger one of white",
            remedy="correct it",
        )
    colour = PixelRules().background if background is None else _colour(background)
    return PixelRules(colour, value_range)


def rule_parameters(rules: PixelRules) -> dict[str, Any]:
    """Parameters that distinguish outputs by rules: none for the defaults, as in outputs of earlier versions."""
    default = PixelRules()
    background = {} if rules.background == default.background else {"background": list(rules.background)}
    values = {} if rules.value_range is None else {"value_range": [float(value) for value in rules.value_range]}
    return background | values


def square_pixels(
    source: Encoded | Image.Image, rules: PixelRules, channels: int, resolution: int
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """An image's pixels, uint8 (C, R, R), and their treatments, as constants of `drl_dist.data.pixels.pictures`.

    Raises:
        PictureError: the image cannot be decoded.
        ValueError: the image cannot be one of the data set.
        MemoryError: there is too little memory.
    """
    if isinstance(source, Image.Image):
        image, treated = source, ()
    else:
        picture = read_picture(source.data, rules, source.formats)
        image, treated = source.cut(picture.image), picture.treated
    with decoding():
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (resolution, resolution):
            # Pillow widens the bilinear kernel when shrinking, which gives the antialiasing of the paper's resize.
            image = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return (pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)), treated


def sum_treated(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Number of images by kind of treatment, over all shards, in order of kind."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def report_treated(treated: Mapping[str, int]) -> None:
    """Print the number of images by kind of treatment, and the option that changes it."""
    if not treated:
        return
    print("Images by kind: " + "; ".join(f"{count} {kind}" for kind, count in treated.items()) + ".", file=sys.stderr)
    if TRANSPARENT in treated:
        print("--background sets another colour behind transparent pixels.", file=sys.stderr)
    if treated.keys() & {SCALED, CLIPPED, *DARK.values()}:
        print("--value-range sets the values of black and white, e.g. 0 4095 for 12 bits.", file=sys.stderr)


def report_untreated(records: Iterable[Mapping[str, Any]]) -> None:
    """Print how many finished shards were made by an earlier version, which did not treat such images."""
    if earlier := sum("treated" not in record for record in records):
        print(
            f"{earlier} of them were made by an earlier version, which clipped values of more than 8 bits and showed "
            "the colours of transparent pixels; if the source has such images, choose another --out.",
            file=sys.stderr,
        )


def report_untreated_output() -> None:
    """Print, for a finished output without the file of stamps, that such images may not have been treated."""
    print(
        "If an earlier version prepared it, values of more than 8 bits were clipped and the colours of transparent "
        "pixels shown; if the source has such images, choose another --out.",
        file=sys.stderr,
    )


def _colour(text: str) -> tuple[int, int, int]:
    try:
        numbers = text.split(",")
        colour = tuple(map(int, numbers)) if len(numbers) == 3 and "(" not in text else ImageColor.getrgb(text)
    except ValueError:
        colour = ()
    if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
        raise UserError(
            "--background",
            got=repr(text),
            expected="a colour such as white, #ffffff or 255,255,255",
            remedy="correct it",
        )
    return colour[0], colour[1], colour[2]
