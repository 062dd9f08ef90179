"""Shards of scikit-learn's bundled handwritten digits: 1797 grey images of 8x8 pixels, nothing to download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasets_prep._build import build
from datasets_prep._labels import NamedClasses
from datasets_prep._source import Item, digest_of, from_pixels

if TYPE_CHECKING:
    from datasets_prep.digits import Options

BRIGHTEST = 16
"""Largest value of a pixel in the data set."""


@dataclass(frozen=True)
class DigitsPart:
    """A run of digits."""

    start: int
    stop: int

    def items(self) -> Iterator[Item]:
        """The images in order."""
        pixels, labels = load_images()
        for index in range(self.start, self.stop):
            yield Item(f"digits/{index}", lambda index=index: from_pixels(pixels[index]), int(labels[index]))


class Digits(NamedClasses):
    """All digits."""

    name, split, channels = "digits", "train", 1
    classes = tuple("0123456789")

    @property
    def digest(self) -> str:
        """Digest of pixels and labels."""
        return digest_of(array.tobytes() for array in load_images())

    def __len__(self) -> int:
        return len(load_images()[1])

    def part(self, start: int, stop: int) -> DigitsPart:
        """Images `start` to `stop`."""
        return DigitsPart(start, stop)


@lru_cache(maxsize=1)
def load_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels (1797, 8, 8) and labels (1797,)."""
    from sklearn.datasets import load_digits

    flat, labels = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(flat).reshape(-1, 8, 8) * (255 / BRIGHTEST)).astype(np.uint8)
    return pixels, np.asarray(labels).astype(np.int64)


def prepare(options: Options) -> int:
    """Make the shards; the exit status."""
    return build(Digits(), options)
