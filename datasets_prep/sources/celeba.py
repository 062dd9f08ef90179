"""Shards of CelebA's aligned faces (img_align_celeba as zip or folder) by the official partition file."""

from __future__ import annotations

import codecs
import copy
import hashlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from datasets_prep._archive import hindrance, member_item, member_stamp, open_archive
from datasets_prep._build import build
from datasets_prep._files import content_by_crc, current_stamp, file_item, read_file
from datasets_prep._listing import picture_formats, printable
from datasets_prep._source import Encoded, Item, SourceDefaults, found_in, require_source
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError

if TYPE_CHECKING:
    from datasets_prep.celeba import Options

IMAGES = "img_align_celeba"
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
"""The official file, and the same table as published on Kaggle."""
HEADERS = (("image_id", "partition"), ("image", "partition"), ("filename", "partition"))
PARTS = {"train": "0", "val": "1", "test": "2"}
ALIGNED_SIZE = (178, 218)
"""Width and height of an aligned image."""
CROP = (0, 20, 178, 198)
"""Rows 20 to 198, the square to which the paper crops."""
NEEDS = f"{IMAGES}.zip or the folder {IMAGES}, or the folder that holds it, with {PARTITIONS[0]} (or .csv) beside it"


@dataclass(frozen=True)
class CelebaPart:
    """A run of images, with their sizes when they were listed; None for a missing one."""

    images: Path
    files: tuple[tuple[str, int | None], ...]

    def items(self) -> Iterator[Item]:
        """The images in order."""
        archive = None if self.images.is_dir() else open_archive(self.images)
        for name, size in self.files:
            if archive is None:
                yield file_item(name, self.images / Path(name).name, size, _load, content_by_crc)
            else:
                yield member_item(archive, name, size, _load)


class Celeba(SourceDefaults):
    """One split of the data set.

    Args:
        images: the zip file or the folder of the images.
        partition: the official partition file, or Kaggle's table.
        split: train, val or test.

    Raises:
        UserError: one of them cannot be read, or they do not match.
    """

    name, channels = "celeba", 3

    def __init__(self, images: Path, partition: Path, split: str) -> None:
        self.split, self._images = split, images
        text = read_text_file(partition)
        parts = read_partition(partition, text)
        names = tuple(name for name, part in parts.items() if part == PARTS[split])
        held, left_out = _held(images)
        if not any(name in held for name in names):
            packed = next((name for name in held if name.lower().endswith((".zip", ".7z"))), "")
            raise UserError(
                f"source {printable(str(images))}",
                got=f"{counted(len(held), 'file')}, none of the "
                f"{counted(len(names), 'image')} that {partition.name} lists for {split}"
                + (f", but {printable(packed)}, which is packed itself" if packed else ""),
                expected=NEEDS,
                remedy="give the matching files",
            )
        if not images.is_dir():
            _refuse_unusable(images, names)
        self._files = tuple((name, held.get(name)) for name in names)
        unlisted = held.keys() - parts.keys()
        kinds = Counter(
            "not in the partition" if name.lower().endswith((".jpg", ".png")) else Path(name).suffix.lower() or "other"
            for name in unlisted
        )
        self.left_out = left_out + kinds
        # In the official file's format, so that the same table in another format is the same source.
        table = "".join(f"{name} {part}\n" for name, part in parts.items())
        self.digest, self._raw_digest = self._digest(table.encode()), self._digest(text)

    def __len__(self) -> int:
        return len(self._files)

    def part(self, start: int, stop: int) -> CelebaPart:
        """Images `start` to `stop`."""
        return CelebaPart(self._images, self._files[start:stop])

    def _digest(self, table: bytes) -> str:
        return hashlib.sha256(table + "".join(f"\n{name} {size}" for name, size in self._files).encode()).hexdigest()

    def as_earlier(self) -> Celeba | None:
        """The same with a digest of the partition file's own bytes, if they differ from the official format."""
        if self._raw_digest == self.digest:
            return None
        other = copy.copy(self)
        other.digest = self._raw_digest
        return other

    def stamps(self, start: int, stop: int) -> bytes:
        """Stamps of the files, or of the archive's members."""
        names = [name for name, _ in self._files[start:stop]]
        if self._images.is_dir():
            return b"".join(current_stamp(self._images / Path(name).name) for name in names)
        archive = open_archive(self._images)
        return b"".join(member_stamp(archive, name) for name in names)


def find(source: Path, partition: str) -> tuple[Path, Path]:
    """The images and the partition file of a source.

    Raises:
        UserError: one of them is missing.
    """
    if not source.is_dir() and not source.is_file():
        raise UserError("--source", got=f"{source}, neither file nor folder", expected=NEEDS, remedy="correct the path")
    images = next((path for path in (source / IMAGES, source / f"{IMAGES}.zip") if path.exists()), source)
    # Some programs unpack the zip to a folder inside a folder of the same name.
    if (images / IMAGES).is_dir():
        images = images / IMAGES
    if images.is_file() and not zipfile.is_zipfile(images):
        raise UserError(
            "--source",
            got=f"{found_in(images)}, which is not a zip archive",
            expected=NEEDS,
            remedy="download it again",
        )
    folders = dict.fromkeys((source, images.parent, source.parent))
    if images.name == images.parent.name:
        folders[images.parent.parent] = None
    candidates = (
        [Path(partition)]
        if partition
        else [folder / below / name for name in PARTITIONS for folder in folders for below in ("", "Eval")]
    )
    list_file = next((path for path in candidates if path.is_file()), None)
    if list_file is None:
        raise UserError(
            "--partition",
            got=partition or f"no {PARTITIONS[0]} (or .csv) beside {images}",
            expected=NEEDS,
            remedy="give the path of CelebA's list_eval_partition.txt",
        )
    return images, list_file


def read_text_file(path: Path) -> bytes:
    """The bytes of a small file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return read_file(path)[0]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"file {printable(str(path))}", got=reason, expected="a file that can be read", remedy="correct it"
        ) from error


def read_partition(path: Path, data: bytes) -> dict[str, str]:
    """The part of each image, "0", "1" or "2", by its name, in the order of the file.

    Columns are separated by blanks, tabs, commas or semicolons, and may be quoted; a first line of column names is
    skipped.

    Raises:
        UserError: the file has other lines, or lists an image twice.
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if utf16 else "utf-8-sig", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    entries = [tuple(field.strip("\"'") for field in re.split(r"\s*[,;]\s*|\s+", line)) for line in lines]
    if entries and entries[0] in HEADERS:
        del lines[0], entries[0]
    parts: dict[str, str] = {}
    for line, entry in zip(lines, entries, strict=True):
        if len(entry) != 2 or entry[1] not in PARTS.values() or entry[0] in parts:
            raise UserError(
                f"partition file {printable(str(path))}",
                got=f"the line {line[:80]!r}" + (f", after another one for {entry[0]}" if entry[0] in parts else ""),
                expected="one line for each image, like '000001.jpg 0', with 0 (train), 1 (val) or 2 (test)",
                remedy="download it again",
            )
        parts[entry[0]] = entry[1]
    return parts


def _held(images: Path) -> tuple[dict[str, int], Counter[str]]:
    """Size in bytes of every file in the folder or archive of images, by name, and counts of the others by kind."""
    if not images.is_dir():
        archive = open_archive(images)
        return {name: info.file_size for name, info in archive.members.items()}, Counter(archive.left_out)
    sizes: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    try:
        with os.scandir(images) as entries:
            for entry in entries:
                if entry.is_file() and not entry.name.startswith("."):
                    sizes[entry.name] = entry.stat().st_size
                elif entry.name.startswith("."):
                    left_out["hidden"] += 1
                else:
                    left_out["folder" if entry.is_dir() else "that is no file"] += 1
    except OSError as error:
        raise UserError(
            f"source {printable(str(images))}",
            got=f"a folder that cannot be listed ({error.strerror})",
            expected=NEEDS,
            remedy="correct its permissions",
        ) from error
    return sizes, left_out


def _refuse_unusable(images: Path, names: tuple[str, ...]) -> None:
    """Raise `UserError` if none of the images in an archive can be unpacked."""
    members = open_archive(images).members
    reasons = [hindrance(members[name]) for name in names if name in members]
    if all(reasons):
        raise UserError(
            f"source {printable(str(images))}",
            got=f"images that are all {reasons[0]}",
            expected="an archive that can be unpacked without a password",
            remedy="unpack it with another program and give the folder",
        )


def _load(data: bytes) -> Encoded:
    return Encoded(data, _face, picture_formats())


def _face(image: Image.Image) -> Image.Image:
    if image.size != ALIGNED_SIZE:
        raise ValueError(f"{image.width}x{image.height} pixels, not 178x218")
    return image.crop(CROP)


def prepare(options: Options) -> int:
    """Make the shards; the exit status."""
    images, partition = find(require_source(options.source, NEEDS), options.partition)
    return build(Celeba(images, partition, options.split), options)
