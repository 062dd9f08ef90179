"""Shards of LSUN from its published LMDB (key -> WebP image): the middle square of each photograph, resized."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lmdb

from datasets_prep._build import PictureOptions, build
from datasets_prep._source import Encoded, Item, centre_square, found_in, require_source
from drl_dist.cli import door, parse_options
from drl_dist.errors import UserError

NEEDS = "the unpacked LSUN folder <category>_<split>_lmdb (with data.mdb in it), or the folder that holds it"


@dataclass(frozen=True, kw_only=True)
class Options(PictureOptions):
    """Options of LSUN."""

    source: str = ""
    """Folder <category>_<split>_lmdb, or the folder that holds it."""
    category: Literal["church_outdoor", "bedroom"] = "church_outdoor"
    """Which scenes."""
    split: Literal["train", "val"] = "train"
    """Part of the data set."""


@dataclass(frozen=True)
class LsunPart:
    """A run of entries."""

    path: Path
    first_key: bytes
    count: int

    def items(self) -> Iterator[Item]:
        """Its images in order of their keys."""
        try:
            with _open(self.path) as database, database.begin() as view, view.cursor() as cursor:
                found = cursor.set_key(self.first_key)
                for _ in range(self.count):
                    if not found:
                        raise UserError(
                            f"source {self.path}",
                            got="fewer images than at the start",
                            expected="a database that nobody writes to",
                            remedy="run the command again",
                        )
                    data = cursor.value()
                    yield Item(cursor.key().decode("ascii", "backslashreplace"), lambda data=data: _load(data))
                    found = cursor.next()
        except lmdb.Error as error:
            raise _damaged(self.path, error) from error


class Lsun:
    """One category and split."""

    channels = 3

    def __init__(self, path: Path, category: str, split: str) -> None:
        self.name, self.split, self._path = f"lsun_{category}", split, path
        digest = hashlib.sha256()
        self._keys: list[bytes] = []
        try:
            with _open(path) as database, database.begin() as view, view.cursor() as cursor:
                # Reading past the end of a database that was cut off would kill the process.
                size = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
                if (held := (path / "data.mdb").stat().st_size) < size:
                    raise UserError(
                        f"source {path}",
                        got=f"data.mdb of {held} bytes",
                        expected=f"{size} bytes",
                        remedy="download it again",
                    )
                for key in cursor.iternext(keys=True, values=False):
                    digest.update(len(key).to_bytes(2, "little") + key)
                    self._keys.append(bytes(key))
        except lmdb.Error as error:
            raise _damaged(path, error) from error
        if not self._keys:
            raise UserError(
                f"source {path}", got="a database without images", expected=NEEDS, remedy="download it again"
            )
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._keys)

    def part(self, start: int, stop: int) -> LsunPart:
        """Images `start` to `stop`."""
        return LsunPart(self._path, self._keys[start], stop - start)


def find(source: Path, category: str, split: str) -> Path:
    """The folder of the database.

    Raises:
        UserError: it is not there, or its name says another category or split.
    """
    wanted = f"{category}_{split}_lmdb"
    path = source / wanted if (source / wanted).is_dir() else source
    if not (path / "data.mdb").is_file():
        packed = " (unpack it first)" if found_in(source).endswith(".zip") else ""
        raise UserError(
            f"source {source}",
            got=found_in(source) + packed,
            expected=f"{NEEDS}; here {wanted}",
            remedy="give the unpacked folder of this category and split",
        )
    named = re.fullmatch(r"(.+_(?:train|val))_lmdb", path.resolve().name)
    if named and named[1] != f"{category}_{split}":
        raise UserError(
            f"source {source}", got=named[0], expected=wanted, remedy="correct --source, --category or --split"
        )
    return path


def _open(path: Path) -> lmdb.Environment:
    try:
        return lmdb.open(str(path), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: lmdb.Error) -> UserError:
    return UserError(
        f"source {path}", got=f"no sound LMDB database ({error})", expected=NEEDS, remedy="download it again"
    )


def _load(data: bytes) -> Encoded:
    return Encoded(data, centre_square)


def main() -> int:
    """The command."""
    options = parse_options(Options, Options(), sys.argv[1:], description=__doc__ or "")
    path = find(require_source(options.source, NEEDS), options.category, options.split)
    return build(Lsun(path, options.category, options.split), options)


if __name__ == "__main__":
    door(main)
