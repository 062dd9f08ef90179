"""The interface between data sets and the building of shards, and helpers for its implementations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets_prep._listing import printable
from drl_dist.common.errors import UserError
from drl_dist.common.validation import local_of


@dataclass(frozen=True)
class Encoded:
    """An image as stored in its file."""

    data: bytes
    """Content of the file."""
    cut: Callable[[Image.Image], Image.Image]
    """Crops the decoded image to a square; raises ValueError if the image cannot be one of the data set."""
    formats: tuple[str, ...] | None = None
    """Pillow's names of the formats it may have; any if None."""


@dataclass(frozen=True)
class Item:
    """One image of a source."""

    source: str
    """Name of the image in the source, e.g. a path or key."""
    load: Callable[[], Encoded | Image.Image]
    """Returns the encoded image, or one that is 8-bit and square; raises OSError or ValueError if it is unreadable."""
    label: int | None = None
    """Class of the image, if the source has classes."""
    attributes: tuple[int, ...] | None = None
    """For each attribute of the source 1 (true), -1 (false) or 0 (unknown), if it has attributes."""
    content: bytes | None = None
    """Checksum of its bytes (see `_files`); None if the source's digest covers them."""
    stamp: bytes | None = None
    """Value that changes if its bytes may have changed (see `_files`); None if `content` is None."""


class Part(Protocol):
    """A run of consecutive images that can be sent to another process, which opens the source itself."""

    def items(self) -> Iterator[Item]:
        """The images in order."""
        ...


class Source(Protocol):
    """A data set in the form in which it is published."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        ...

    @property
    def split(self) -> str:
        """Part of the data set."""
        ...

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        ...

    @property
    def digest(self) -> str:
        """Identity of the source; the same for the same content at another place."""
        ...

    @property
    def may_end_process(self) -> bool:
        """Whether damage in it can end the process that reads it, which must then be a worker process."""
        ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """Number of files that are left out, by kind."""
        ...

    @property
    def lacks(self) -> str:
        """Of a source as an earlier version took it: what its outputs lack; empty if nothing."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What else tells its outputs from others, as JSON values; nothing for what earlier versions made."""
        ...

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> Part:
        """Images `start` to `stop` of the source's own order."""
        ...

    def stamps(self, start: int, stop: int) -> bytes | None:
        """The current stamps of these images, without reading them; None if `digest` covers their content."""
        ...

    def as_earlier(self) -> Source | None:
        """The same source with the images and labels that earlier versions took; None if they are the same."""
        ...


class SourceDefaults:
    """Defaults for sources whose digest covers their content."""

    left_out: Mapping[str, int] = MappingProxyType({})
    may_end_process: bool = False
    lacks: str = ""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Nothing: earlier versions made the same of it."""
        return MappingProxyType({})

    def stamps(self, start: int, stop: int) -> bytes | None:
        """None: every change changes the digest."""
        return None

    def as_earlier(self) -> Source | None:
        """None: earlier versions selected the same images."""
        return None


def digest_of(entries: Iterable[bytes]) -> str:
    """SHA-256 of a sequence of byte strings."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(len(entry).to_bytes(8, "little"))
        digest.update(entry)
    return digest.hexdigest()


def centre_square(image: Image.Image) -> Image.Image:
    """The largest square in the middle of an image."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    """An image of uint8 pixels (H, W) or (H, W, 3)."""
    return Image.fromarray(np.ascontiguousarray(pixels))


def require_source(source: str, needs: str) -> Path:
    """The local path of a source.

    Args:
        source: the source as the user gave it.
        needs: description of what is expected there.

    Raises:
        UserError: nothing is there, or it is a URL with a host or with escapes.
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
    """Return if a worker has read the same content as when the source was opened.

    Raises:
        UserError: the content has changed.
    """
    if digest != expected:
        raise UserError(
            f"source {printable(str(path))}",
            got="other content than at the start",
            expected="files that do not change",
            remedy="repeat the command when nothing writes to them",
        )


def found_in(path: Path, limit: int = 5) -> str:
    """A description of what is at a path, for an error message."""
    if not path.is_dir():
        return f"the file {printable(path.name)}"
    try:
        names = sorted(printable(entry.name) for entry in path.iterdir())
    except OSError as error:
        return f"a folder that cannot be listed ({error.strerror})"
    shown = ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    return f"a folder with {shown}" if names else "an empty folder"
