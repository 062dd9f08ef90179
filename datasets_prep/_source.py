"""What a data set must offer to be made into shards, and how its images become square."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drl_dist.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """An image as its file has it."""

    data: bytes
    """The file."""
    cut: Callable[[Image.Image], Image.Image]
    """Cuts the square out of the decoded image; raises ValueError if that is none of the data set's."""
    formats: tuple[str, ...] | None = None
    """Pillow's names of the formats that it may have; any if None."""


@dataclass(frozen=True)
class Item:
    """One image of a source."""

    source: str
    """Its name in the source, e.g. a path or key."""
    load: Callable[[], Encoded | Image.Image]
    """Reads it; raises OSError or ValueError if it cannot be read. An image, if given, is 8-bit and square."""
    label: int | None = None
    """Its class, if the source has classes."""


class Part(Protocol):
    """A run of consecutive images, small enough to be sent to another process, which opens the source itself."""

    def items(self) -> Iterator[Item]:
        """Its images in order."""
        ...


class Source(Protocol):
    """A data set in the form in which it is published."""

    @property
    def name(self) -> str:
        """The data set."""
        ...

    @property
    def split(self) -> str:
        """The part of the data set."""
        ...

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        ...

    @property
    def digest(self) -> str:
        """Tells this source from another; equal for equal content at another place."""
        ...

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> Part:
        """Images `start` to `stop` of the source's own order."""
        ...


def digest_of(entries: Iterable[bytes]) -> str:
    """SHA-256 of a sequence of byte strings."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(len(entry).to_bytes(8, "little"))
        digest.update(entry)
    return digest.hexdigest()


def centre_square(image: Image.Image) -> Image.Image:
    """The middle of an image: the largest square that it holds."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    """An image of uint8 pixels (H, W) or (H, W, 3)."""
    return Image.fromarray(np.ascontiguousarray(pixels))


def require_source(source: str, needs: str) -> Path:
    """The local path of a source.

    Args:
        source: what the user gave.
        needs: what should lie there, in words.

    Raises:
        UserError: nothing lies there.
    """
    path = Path(source.removeprefix("file://"))
    if not source or not path.exists():
        raise UserError("--source", got=source or "nothing", expected=needs, remedy="give the path of the download")
    return path


def found_in(path: Path, limit: int = 5) -> str:
    """What lies at a path, in words, for an error message."""
    if path.is_file():
        return f"the file {path.name}"
    names = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    return f"a folder with {shown}" if names else "an empty folder"
