"""Shards of LSUN from its published LMDB (key -> WebP image): the middle square of each photograph, resized."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import lmdb

from datasets_prep._build import build
from datasets_prep._files import content_of, current_stamp, settled_stamp
from datasets_prep._listing import picture_formats, printable
from datasets_prep._lmdb_keys import read_keys
from datasets_prep._options import DEFAULT_CATEGORY, Category
from datasets_prep._source import Encoded, Item, SourceDefaults, centre_square, found_in, require_source
from drl_dist.common.errors import UserError

if TYPE_CHECKING:
    from datasets_prep.lsun import Options

NEEDS = "the unpacked LSUN folder <category>_<split>_lmdb (with data.mdb in it), or the folder that holds it"
DATABASE = "data.mdb"
TEST_FOLDER = "test_lmdb"
OBJECTS = get_args(Category)[10:]
"""Categories published as <category>.zip without a split."""
ALL_SCENES = "all"
"""Category of the test split, whose images are unlabelled and show all scenes."""


@dataclass(frozen=True)
class LsunPart:
    """A run of entries."""

    path: Path
    first_key: bytes
    last_key: bytes
    count: int

    def items(self) -> Iterator[Item]:
        """The images in order of their keys."""
        try:
            stamp = settled_stamp((self.path / DATABASE).stat())
            with _open(self.path) as database, database.begin() as view, view.cursor() as cursor:
                found, key = cursor.set_key(self.first_key), b""
                for _ in range(self.count):
                    if not found:
                        raise _other_images(self.path)
                    key, data = cursor.key(), cursor.value()
                    name = key.decode("ascii", "backslashreplace")
                    yield Item(name, lambda data=data: _load(data), content=content_of(data), stamp=stamp)
                    found = cursor.next()
                if key != self.last_key:
                    raise _other_images(self.path)
        except (lmdb.Error, OSError) as error:
            raise _damaged(self.path, error) from error


class Lsun(SourceDefaults):
    """One category and split.

    Raises:
        UserError: the database is damaged or empty.
    """

    channels = 3
    may_end_process = True

    def __init__(self, path: Path, category: str, split: str) -> None:
        self.name, self.split, self._path = f"lsun_{category.replace('-', '_')}", split, path
        try:
            with _open(path) as database:
                # Reading past the end of a truncated database would kill the process.
                size = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
                if (held := (path / DATABASE).stat().st_size) < size:
                    raise UserError(
                        f"source {path}",
                        got=f"data.mdb of {held} bytes",
                        expected=f"{size} bytes",
                        remedy="download it again",
                    )
            self._keys = read_keys(path)
        except (lmdb.Error, OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if not self._keys:
            raise UserError(
                f"source {path}", got="a database without images", expected=NEEDS, remedy="download it again"
            )
        digest = hashlib.sha256()
        for key in self._keys:
            digest.update(len(key).to_bytes(2, "little") + key)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._keys)

    def part(self, start: int, stop: int) -> LsunPart:
        """Images `start` to `stop`."""
        return LsunPart(self._path, self._keys[start], self._keys[stop - 1], stop - start)

    def stamps(self, start: int, stop: int) -> bytes:
        """The stamp of the database, for each image."""
        return current_stamp(self._path / DATABASE) * (stop - start)


def find(source: Path, category: str, split: str) -> Path:
    """The folder of the database.

    Raises:
        UserError: it is missing, or its name is that of another category or split.
    """
    names = _names(category, split)
    path = next((source / name for name in names if (source / name / DATABASE).is_file()), source)
    if not (path / DATABASE).is_file():
        packed = next((f"{name}.zip" for name in names if (source / f"{name}.zip").is_file()), "")
        got = f"{packed}, which is not unpacked" if packed else found_in(source)
        if source.suffix.lower() == ".zip":
            got += ", which is not unpacked"
        raise UserError(
            f"source {printable(str(source))}",
            got=got,
            expected=f"{NEEDS}; here {' or '.join(names)}",
            remedy="unpack it, and give the folder"
            if "not unpacked" in got
            else "give the folder of this category and split",
        )
    name = path.resolve().name
    published = {other for kind in get_args(Category) for part in ("train", "val") for other in _names(kind, part)}
    if name not in names and name in published | {TEST_FOLDER}:
        raise UserError(
            f"source {source}", got=name, expected=" or ".join(names), remedy="correct --source, --category or --split"
        )
    return path


def _names(category: str, split: str) -> tuple[str, ...]:
    """Possible names of the folder of a category and split."""
    if split == "test":
        return (TEST_FOLDER,)
    objects = (category, f"{category}_lmdb") if category in OBJECTS and split == "train" else ()
    return (f"{category}_{split}_lmdb", *objects)


def _check_split(category: str, split: str) -> str:
    """The category after which the data set is named.

    Raises:
        UserError: the category has no such split.
    """
    if split == "test":
        if category != DEFAULT_CATEGORY:
            raise UserError(
                "--category",
                got=f"{category} with --split test",
                expected=f"no category, since {TEST_FOLDER} holds unlabelled images of all scenes",
                remedy="leave --category out",
            )
        return ALL_SCENES
    if category in OBJECTS and split != "train":
        raise UserError(
            "--split", got=split, expected=f"train, the only part of LSUN's {category}", remedy="leave --split out"
        )
    return category


def _open(path: Path) -> lmdb.Environment:
    try:
        return lmdb.open(str(path), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise _damaged(path, error) from error


def _other_images(path: Path) -> UserError:
    return UserError(
        f"source {path}",
        got="other images than at the start",
        expected="a database that does not change",
        remedy="repeat the command when nothing writes to it",
    )


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"source {path}", got=f"no readable LMDB database ({error})", expected=NEEDS, remedy="download it again"
    )


def _load(data: bytes) -> Encoded:
    return Encoded(data, centre_square, picture_formats())


def prepare(options: Options) -> int:
    """Make the shards; the exit status."""
    category = _check_split(options.category, options.split)
    path = find(require_source(options.source, NEEDS), options.category, options.split)
    return build(Lsun(path, category, options.split), options)
