"""The *binary* archives of CIFAR-10 and CIFAR-100, which can be read without pickle.

An image is one record: a byte for each of its labels, then its red, green and blue planes.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets_prep._labels import NamedClasses
from datasets_prep._source import Item, digest_of, found_in, from_pixels, require_same
from drl_dist.common.errors import UserError

PIXELS = 3 * 32 * 32
MAX_MEMBER_BYTES = 2**30


@dataclass(frozen=True)
class Layout:
    """How the archive of a data set is laid out."""

    folder: str
    """Folder that it unpacks to."""
    members: tuple[str, ...]
    """Files of one part of the data set, in order."""
    classes: tuple[int, ...]
    """Number of classes that each byte of labels tells apart."""
    needs: str
    """What a source must be, for messages."""

    @property
    def record(self) -> int:
        """Size of one image in bytes."""
        return len(self.classes) + PIXELS


@dataclass(frozen=True)
class CifarPart:
    """A run of images."""

    path: Path
    layout: Layout
    split: str
    label: int
    """Which byte of labels counts."""
    start: int
    stop: int
    digest: str

    def items(self) -> Iterator[Item]:
        """The images in order."""
        records = records_of(self.path, self.layout)
        require_same(digest_of_records(self.path, self.layout), self.digest, self.path)
        for index in range(self.start, self.stop):
            record = records[index]
            pixels = record[len(self.layout.classes) :].reshape(3, 32, 32).transpose(1, 2, 0)
            yield Item(f"{self.split}/{index}", lambda pixels=pixels: from_pixels(pixels), int(record[self.label]))


class CifarSource(NamedClasses):
    """One split of a data set in an archive or a folder.

    Args:
        name: of the data set.
        path: the archive or the folder.
        layout: of this split.
        split: its name.
        label: which byte of labels counts.
        classes: names that it stands for.

    Raises:
        UserError: a file is missing or damaged.
    """

    channels = 3

    def __init__(
        self, name: str, path: Path, layout: Layout, split: str, *, label: int, classes: tuple[str, ...]
    ) -> None:
        self.name, self.split, self.classes = name, split, classes
        self._path, self._layout, self._label = path, layout, label
        for cached in (records_of, digest_of_records):
            cached.cache_clear()
        self._length = len(records_of(path, layout))
        self.digest = digest_of_records(path, layout)

    def __len__(self) -> int:
        return self._length

    def part(self, start: int, stop: int) -> CifarPart:
        """Images `start` to `stop`."""
        return CifarPart(self._path, self._layout, self.split, self._label, start, stop, self.digest)


@lru_cache(maxsize=1)
def records_of(path: Path, layout: Layout) -> NDArray[np.uint8]:
    """Labels and pixels of all images, uint8 (n, record).

    Raises:
        UserError: a file is missing or damaged.
    """
    files = read_members(path, layout, layout.members)
    record = layout.record
    for name, data in files.items():
        labels = [data[place::record] for place in range(len(layout.classes))]
        if (
            not data
            or len(data) % record
            or any(max(of_all) >= count for of_all, count in zip(labels, layout.classes, strict=True))
        ):
            classes = " and ".join(f"0 to {count - 1}" for count in layout.classes)
            raise UserError(
                f"{name} in {path}",
                got=f"{len(data)} bytes that are not whole images with classes {classes}",
                expected=f"a multiple of {record} bytes",
                remedy="download it again",
            )
    return np.frombuffer(b"".join(files[name] for name in layout.members), dtype=np.uint8).reshape(-1, record)


@lru_cache(maxsize=1)
def digest_of_records(path: Path, layout: Layout) -> str:
    """Digest of the labels and pixels of all images."""
    return digest_of([records_of(path, layout).tobytes()])


def read_members(path: Path, layout: Layout, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The content of some files of an archive or of the folder that it unpacks to.

    Raises:
        UserError: one of them is missing, or the archive cannot be read.
    """
    files = _from_folder(path, layout, wanted) if path.is_dir() else _from_archive(path, layout, wanted)
    missing = [name for name in wanted if name not in files]
    if missing:
        raise UserError(
            f"source {path}",
            got=f"{found_in(path)} without {', '.join(missing)}",
            expected=layout.needs,
            remedy="download the binary version",
        )
    return files


def _from_folder(path: Path, layout: Layout, wanted: tuple[str, ...]) -> dict[str, bytes]:
    inner = path / layout.folder
    folder = inner if inner.is_dir() else path
    try:
        return {name: (folder / name).read_bytes() for name in wanted if (folder / name).is_file()}
    except OSError as error:
        raise _unreadable(path, layout, error) from error


def _from_archive(path: Path, layout: Layout, wanted: tuple[str, ...]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if member.isreg() and name in wanted and member.size <= MAX_MEMBER_BYTES:
                    file = archive.extractfile(member)
                    assert file is not None
                    data = file.read()
                    if files.setdefault(name, data) != data:
                        raise UserError(
                            f"source {path}",
                            got=f"two different files named {name}",
                            expected="one file of each name",
                            remedy="download it again",
                        )
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise _unreadable(path, layout, error) from error
    return files


def _unreadable(path: Path, layout: Layout, error: Exception) -> UserError:
    return UserError(
        f"source {path}", got=f"no readable archive ({error})", expected=layout.needs, remedy="download it again"
    )
