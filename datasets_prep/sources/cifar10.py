"""Shards of CIFAR-10 from its *binary* archive (cifar-10-binary.tar.gz), which can be read without pickle."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasets_prep._build import build
from datasets_prep._source import Item, SourceDefaults, digest_of, found_in, from_pixels, require_same, require_source
from drl_dist.common.errors import UserError

if TYPE_CHECKING:
    from datasets_prep.cifar10 import Options

MEMBERS = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
RECORD = 1 + 3 * 32 * 32
"""Size of one image in bytes: its class, then the red, green and blue planes."""
MAX_MEMBER_BYTES = 2**30
NEEDS = "cifar-10-binary.tar.gz (the binary version, not the Python one), or a folder with its data_batch_1.bin to 5"


@dataclass(frozen=True)
class CifarPart:
    """A run of images."""

    path: Path
    split: str
    start: int
    stop: int
    digest: str

    def items(self) -> Iterator[Item]:
        """The images in order."""
        records = _records(self.path, self.split)
        require_same(_digest(self.path, self.split), self.digest, self.path)
        for index in range(self.start, self.stop):
            pixels = records[index, 1:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield Item(f"{self.split}/{index}", lambda pixels=pixels: from_pixels(pixels), int(records[index, 0]))


class Cifar10(SourceDefaults):
    """One split of the data set in an archive or a folder."""

    name, channels = "cifar10", 3

    def __init__(self, path: Path, split: str) -> None:
        self.split, self._path = split, path
        for cached in (_records, _digest):
            cached.cache_clear()
        self._length = len(_records(path, split))
        self.digest = _digest(path, split)

    def __len__(self) -> int:
        return self._length

    def part(self, start: int, stop: int) -> CifarPart:
        """Images `start` to `stop`."""
        return CifarPart(self._path, self.split, start, stop, self.digest)


@lru_cache(maxsize=1)
def _records(path: Path, split: str) -> NDArray[np.uint8]:
    """Classes and pixels of all images, uint8 (n, 3073)."""
    wanted = MEMBERS[split]
    files = _from_folder(path, wanted) if path.is_dir() else _from_archive(path, wanted)
    missing = [name for name in wanted if name not in files]
    if missing:
        raise UserError(
            f"source {path}",
            got=f"{found_in(path)} without {', '.join(missing)}",
            expected=NEEDS,
            remedy="download the binary version",
        )
    for name, data in files.items():
        if not data or len(data) % RECORD or max(data[::RECORD]) > 9:
            raise UserError(
                f"{name} in {path}",
                got=f"{len(data)} bytes that are not whole images with classes 0 to 9",
                expected=f"a multiple of {RECORD} bytes",
                remedy="download it again",
            )
    return np.frombuffer(b"".join(files[name] for name in wanted), dtype=np.uint8).reshape(-1, RECORD)


@lru_cache(maxsize=1)
def _digest(path: Path, split: str) -> str:
    return digest_of([_records(path, split).tobytes()])


def _from_folder(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    inner = path / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else path
    try:
        return {name: (folder / name).read_bytes() for name in wanted if (folder / name).is_file()}
    except OSError as error:
        raise _unreadable(path, error) from error


def _from_archive(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
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
        raise _unreadable(path, error) from error
    return files


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"source {path}", got=f"no readable archive ({error})", expected=NEEDS, remedy="download it again")


def prepare(options: Options) -> int:
    """Make the shards; the exit status."""
    return build(Cifar10(require_source(options.source, NEEDS), options.split), options)
