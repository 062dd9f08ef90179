"""Statistics of a data set's pixels, exact whatever the order in which the images are counted.

Pixels p = 0 ... 255 stand for x = p / 127.5 - 1 = q / 255 with q = 2 p - 255. Everything is summed over the whole
numbers q and divided once, at the end: no worker, restart or order of shards changes a bit of the result.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_BLOCKS = 32
"""Blocks in each direction of the mean image. Every shard keeps a sum for each of them until its data set is finished;
the mean image of larger pictures is smooth, so that few blocks lose next to nothing of its square."""
_SQUARES = ((2 * np.arange(256) - 255) ** 2).astype(np.uint16)
"""q**2 of every p."""
_ROUNDING = 1e-9
_NUMBERS = ("images", "pixels", "squares", "image_squares")


@dataclass(frozen=True, kw_only=True)
class PixelStatistics:
    """What is known of the pixels of a data set, in the scale [-1, 1]."""

    mean: float
    """Over all pixels of all images."""
    std: float
    """Standard deviation of all pixels about that mean."""
    largest_variance: float
    """A lower bound of the largest second moment E <x, u>**2 along a unit vector u of image space, (C, R, R): the
    larger one of those along the constant image and (at least) along the mean image."""

    @property
    def root_mean_square(self) -> float:
        """Standard deviation of all pixels about zero."""
        return math.hypot(self.mean, self.std)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], num_pixels: int) -> PixelStatistics:
        """What `as_json` gave.

        Args:
            num_pixels: numbers in an image, C * R * R.

        Raises:
            ValueError, TypeError: no images of so many pixels have these statistics.
        """
        found = cls(**values)
        if not all(type(value) is float and math.isfinite(value) for value in asdict(found).values()):
            raise ValueError(f"statistics of {dict(values)}")
        square = found.mean**2 + found.std**2
        # No second moment is less than that of a constant image, or more than that of all directions together.
        low, high = num_pixels * found.mean**2 * (1 - _ROUNDING), num_pixels * square * (1 + _ROUNDING)
        if not (found.std >= 0 and square <= 1 + _ROUNDING and low <= found.largest_variance <= high):
            raise ValueError(f"statistics of {dict(values)}")
        return found

    def as_json(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class PixelSums:
    """Sums over images of one shape; those of parts of a data set add up to those of the whole."""

    images: int
    """Images counted."""
    pixels: int
    """Sum of q over all pixels of all images."""
    squares: int
    """Sum of q**2."""
    image_squares: int
    """Sum over images of (sum of q in the image)**2."""
    blocks: NDArray[np.int64]
    """(C, B, B) sums of q over all images and the pixels of a block; B = R up to 32, and each block a pixel."""

    @classmethod
    def none(cls, channels: int, resolution: int) -> PixelSums:
        """Of no images."""
        side = len(_edges(resolution))
        return cls(0, 0, 0, 0, np.zeros((channels, side, side), np.int64))

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> PixelSums:
        """Of images (N, C, R, R)."""
        count, _, resolution, _ = images.shape
        edges = _edges(resolution)
        if len(edges) == resolution:
            blocks = images.astype(np.int64)
        else:
            blocks = np.add.reduceat(np.add.reduceat(images, edges, axis=2, dtype=np.int64), edges, axis=3)
        blocks = 2 * blocks - 255 * _areas(resolution)
        squares = int(_SQUARES[images].sum(dtype=np.int64))
        # Python's whole numbers: the square of such a sum may have more than 64 bits.
        totals: list[int] = blocks.sum(axis=(1, 2, 3)).tolist()
        return cls(count, sum(totals), squares, sum(total**2 for total in totals), blocks.sum(axis=0))

    def __add__(self, other: PixelSums) -> PixelSums:
        return PixelSums(
            self.images + other.images,
            self.pixels + other.pixels,
            self.squares + other.squares,
            self.image_squares + other.image_squares,
            self.blocks + other.blocks,
        )

    def statistics(self, resolution: int) -> PixelStatistics:
        """What the sums of one or more images say.

        Args:
            resolution: R.
        """
        num_pixels = self.blocks.shape[0] * resolution**2
        mean = Fraction(self.pixels, 255 * self.images * num_pixels)
        square = Fraction(self.squares, 255**2 * self.images * num_pixels)
        constant = Fraction(self.image_squares, 255**2 * self.images * num_pixels)
        # The part of the mean image that is constant on each block; no longer than the mean image itself.
        areas = np.broadcast_to(_areas(resolution), self.blocks.shape)
        parts = (Fraction(int(one) ** 2, int(area)) for one, area in zip(self.blocks.flat, areas.flat, strict=True))
        mean_image = sum(parts, Fraction(0)) / (255 * self.images) ** 2
        return PixelStatistics(
            mean=float(mean), std=math.sqrt(square - mean**2), largest_variance=float(max(constant, mean_image))
        )

    def as_json(self) -> dict[str, Any]:
        """The sums, for a shard's record."""
        values = {name: getattr(self, name) for name in _NUMBERS}
        return values | {"blocks": base64.b64encode(self.blocks.astype("<i8").tobytes()).decode()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], channels: int, resolution: int) -> PixelSums:
        """What `as_json` gave, of images (C, R, R).

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        images, pixels, squares, image_squares = numbers = [values[name] for name in _NUMBERS]
        if not all(type(number) is int for number in numbers):
            raise TypeError("a sum that is no whole number")
        side = len(_edges(resolution))
        blocks = np.frombuffer(base64.b64decode(values["blocks"]), dtype="<i8").reshape(channels, side, side)
        found = cls(images, pixels, squares, image_squares, blocks.astype(np.int64))
        if int(found.blocks.sum()) != found.pixels:
            raise ValueError("sums that contradict each other")
        return found


def measure_images(images: NDArray[np.uint8], batch_size: int = 256) -> PixelStatistics:
    """The statistics of images in memory, (N, C, R, R), N at least 1."""
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return total(map(PixelSums.of, batches), images.shape[1], images.shape[2]).statistics(images.shape[2])


def total(parts: Iterable[PixelSums], channels: int, resolution: int) -> PixelSums:
    """The sums of all parts together, of images (C, R, R)."""
    return sum(parts, PixelSums.none(channels, resolution))


@lru_cache
def _edges(resolution: int) -> NDArray[np.intp]:
    """First row, or column, of each block."""
    side = min(resolution, _MAX_BLOCKS)
    return np.arange(side) * resolution // side


@lru_cache
def _areas(resolution: int) -> NDArray[np.int64]:
    """(B, B) pixels of each block."""
    lengths = np.diff(_edges(resolution), append=resolution)
    return np.outer(lengths, lengths)
