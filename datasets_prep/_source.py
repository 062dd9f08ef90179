"""What a data set must offer to be made into shards, and how its images become square."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets_prep._listing import printable
from drl_dist.common.errors import UserError
from drl_dist.common.validation import local_of


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
    """Gives it; raises OSError or ValueError if it cannot be read. An image, if given, is 8-bit and square."""
    label: int | None = None
    """Its class, if the source has classes."""
    content: bytes | None = None
    """Tells its bytes from others (see `_files`); None if the source's digest does."""
    stamp: bytes | None = None
    """Stays the same as long as nothing says that its bytes may be others; None as `content`."""


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

    @property
    def may_end_process(self) -> bool:
        """Whether damage in it can end the process that reads it, which must then be no other than a worker."""
        ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """Number of files of each kind that are not among its images."""
        ...

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> Part:
        """Images `start` to `stop` of the source's own order."""
        ...

    def stamps(self, start: int, stop: int) -> bytes | None:
        """The stamps of these images as they are now, without reading them; None if `digest` is of their content."""
        ...

    def as_earlier(self) -> Source | None:
        """The same source with the images that earlier versions took; None if they took the same."""
        ...


class SourceDefaults:
    """What holds for a source whose digest is one of its content."""

    left_out: Mapping[str, int] = MappingProxyType({})
    may_end_process: bool = False

    def stamps(self, start: int, stop: int) -> bytes | None:
        """None: the digest tells all changes."""
        return None

    def as_earlier(self) -> Source | None:
        """None: earlier versions took the same images."""
        return None


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
        UserError: nothing lies there, or it is a URL of another machine's or one with escapes.
    """
    path = local_of(source, "--source") if source.startswith("file://") else Path(source)
    try:
        if source:
            path.stat()
            return path
        got = "nothing"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        got = printable(source) + ("" if isinstance(error, FileNotFoundError) else f", which cannot be read ({reason})")
    raise UserError("--source", got=got, expected=needs, remedy="give the path of the download")


def require_same(digest: str, expected: str, path: Path) -> None:
    """Return if a process that makes shards has read what was there when the source was opened.

    Raises:
        UserError: it has read something else.
    """
    if digest != expected:
        raise UserError(
            f"source {printable(str(path))}",
            got="other content than at the start",
            expected="files that nobody writes to",
            remedy="run the command again when nothing writes to them",
        )


def found_in(path: Path, limit: int = 5) -> str:
    """What lies at a path, in words, for an error message."""
    if not path.is_dir():
        return f"the file {printable(path.name)}"
    try:
        names = sorted(printable(entry.name) for entry in path.iterdir())
    except OSError as error:
        return f"a folder that cannot be listed ({error.strerror})"
    shown = ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    return f"a folder with {shown}" if names else "an empty folder"
