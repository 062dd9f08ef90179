"""Shards of Fashion-MNIST from its idx files, such as those of Debian's dataset-fashion-mnist."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasets_prep._build import build
from datasets_prep._labels import NamedClasses
from datasets_prep._source import Item, digest_of, found_in, from_pixels, require_same, require_source
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError

if TYPE_CHECKING:
    from datasets_prep.fashion_mnist import Options

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""As its authors name them."""
PREFIXES = {"train": "train", "test": "t10k"}
MARGIN = 2
"""Black pixels added on each side, from 28 to 32."""
NEEDS = "a folder with Fashion-MNIST's idx files, e.g. train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz"
MAX_IMAGES = 10_000_000


@dataclass(frozen=True)
class FashionPart:
    """A run of images."""

    folder: Path
    split: str
    start: int
    stop: int
    digest: str

    def items(self) -> Iterator[Item]:
        """The images in order."""
        pixels, labels = _arrays(self.folder, self.split)
        require_same(_digest(self.folder, self.split), self.digest, self.folder)
        for index in range(self.start, self.stop):
            framed = np.pad(pixels[index], MARGIN)
            yield Item(f"{self.split}/{index}", lambda framed=framed: from_pixels(framed), int(labels[index]))


class FashionMnist(NamedClasses):
    """One split of the data set in a folder."""

    name, channels, classes = "fashion_mnist", 1, CLASSES

    def __init__(self, folder: Path, split: str) -> None:
        self.split, self._folder = split, folder
        for cached in (_arrays, _digest):
            cached.cache_clear()
        self._length = len(_arrays(folder, split)[1])
        self.digest = _digest(folder, split)

    def __len__(self) -> int:
        return self._length

    def part(self, start: int, stop: int) -> FashionPart:
        """Images `start` to `stop`."""
        return FashionPart(self._folder, self.split, start, stop, self.digest)


@lru_cache(maxsize=1)
def _arrays(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    pixels = _read_idx(folder, f"{PREFIXES[split]}-images-idx3-ubyte", 3)
    labels = _read_idx(folder, f"{PREFIXES[split]}-labels-idx1-ubyte", 1)
    if len(pixels) != len(labels):
        raise UserError(
            f"source {folder}",
            got=f"{counted(len(pixels), 'image')} but {counted(len(labels), 'label')}",
            expected="as many labels as images",
            remedy="download the files again",
        )
    if len(labels) and labels.max() >= len(CLASSES):
        raise UserError(
            f"source {folder}",
            got=f"the label {labels.max()}",
            expected=f"classes 0 to {len(CLASSES) - 1}",
            remedy="download the files again",
        )
    return pixels, labels


@lru_cache(maxsize=1)
def _digest(folder: Path, split: str) -> str:
    return digest_of(array.tobytes() for array in _arrays(folder, split))


def _read_idx(folder: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise UserError(
            f"source {folder}",
            got=found_in(folder),
            expected=NEEDS,
            remedy="install dataset-fashion-mnist, or give the folder of the download",
        )
    header = 4 * (1 + dimensions)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic, *shape = struct.unpack(f">{1 + dimensions}I", file.read(header))
            if magic != 0x800 + dimensions or shape[0] > MAX_IMAGES or any(side != 28 for side in shape[1:]):
                raise ValueError(f"an idx header of magic {magic:#x} and shape {shape}")
            size = int(np.prod(shape, dtype=np.int64))
            data = file.read(size + 1)
    except (OSError, EOFError, struct.error, zlib.error, ValueError) as error:
        raise _damaged(path, str(error), "an idx file of bytes, 28x28 if of images") from error
    if len(data) != size:
        raise _damaged(
            path,
            f"{'more than ' if len(data) > size else ''}{min(len(data), size)} bytes of data",
            f"{size} as its header says",
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _damaged(path: Path, got: str, expected: str) -> UserError:
    return UserError(f"source file {path}", got=got, expected=expected, remedy="download it again")


def prepare(options: Options) -> int:
    """Make the shards; the exit status."""
    return build(FashionMnist(require_source(options.source, NEEDS), options.split), options)
