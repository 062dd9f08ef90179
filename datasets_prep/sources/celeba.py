"""Shards of CelebA's aligned faces (img_align_celeba as zip or folder) by the official partition file."""

from __future__ import annotations

import copy
import hashlib
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from datasets_prep._archive import hindrance, member_item, member_stamp, open_archive
from datasets_prep._attributes import Attributes, report_attributes
from datasets_prep._build import build
from datasets_prep._celeba_tables import PARTS, read_attributes, read_partition, read_text_file
from datasets_prep._files import content_by_crc, current_stamp, file_item
from datasets_prep._listing import picture_formats, printable
from datasets_prep._source import Encoded, Item, SourceDefaults, found_in, require_source
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError

if TYPE_CHECKING:
    from datasets_prep.celeba import Options

IMAGES = "img_align_celeba"
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
"""The official file, and the same table as published on Kaggle."""
ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
ALIGNED_SIZE = (178, 218)
"""Width and height of an aligned image."""
CROP = (0, 20, 178, 198)
"""Rows 20 to 198, the square to which the paper crops."""
NEEDS = f"{IMAGES}.zip or the folder {IMAGES}, or the folder that holds it, with {PARTITIONS[0]} (or .csv) beside it"


@dataclass(frozen=True)
class CelebaPart:
    """A run of images, with their sizes when they were listed, None for a missing one, and their attributes."""

    images: Path
    files: tuple[tuple[str, int | None, tuple[int, ...] | None], ...]

    def items(self) -> Iterator[Item]:
        """The images in order."""
        archive = None if self.images.is_dir() else open_archive(self.images)
        for name, size, attributes in self.files:
            if archive is None:
                item = file_item(name, self.images / Path(name).name, size, _load, content_by_crc)
            else:
                item = member_item(archive, name, size, _load)
            yield replace(item, attributes=attributes)


class Celeba(SourceDefaults):
    """One split of the data set.

    Args:
        images: the zip file or the folder of the images.
        partition: the official partition file, or Kaggle's table.
        split: train, val or test.
        attributes: the official file of attributes, or Kaggle's table; None for images without.

    Raises:
        UserError: one of them cannot be read, or they do not match.
    """

    name, channels = "celeba", 3

    def __init__(self, images: Path, partition: Path, split: str, attributes: Path | None = None) -> None:
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
        self._attributes = (
            Attributes() if attributes is None else read_attributes(attributes, read_text_file(attributes), names)
        )
        # In the official file's format, so that the same table in another format is the same source.
        table = "".join(f"{name} {part}\n" for name, part in parts.items())
        self.digest, self._raw_digest = self._digest(table.encode()), self._digest(text)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes; empty without any."""
        return self._attributes.names

    @property
    def parameters(self) -> dict[str, Any]:
        """See `datasets_prep._source.Source.parameters`."""
        return self._attributes.parameters

    def __len__(self) -> int:
        return len(self._files)

    def part(self, start: int, stop: int) -> CelebaPart:
        """Images `start` to `stop`."""
        of = self._attributes.of
        return CelebaPart(self._images, tuple((name, size, of.get(name)) for name, size in self._files[start:stop]))

    def _digest(self, table: bytes) -> str:
        return hashlib.sha256(table + "".join(f"\n{name} {size}" for name, size in self._files).encode()).hexdigest()

    def as_earlier(self) -> Celeba | None:
        """The same without attributes; then with a digest of the partition file's own bytes, if they differ from the
        official format.
        """
        other = copy.copy(self)
        if self.attributes:
            other._attributes, other.lacks = Attributes(), "attributes"
            return other
        if self._raw_digest == self.digest:
            return None
        other.digest = self._raw_digest
        return other

    def stamps(self, start: int, stop: int) -> bytes:
        """Stamps of the files, or of the archive's members."""
        names = [name for name, _ in self._files[start:stop]]
        if self._images.is_dir():
            return b"".join(current_stamp(self._images / Path(name).name) for name in names)
        archive = open_archive(self._images)
        return b"".join(member_stamp(archive, name) for name in names)


def find(source: Path, partition: str, attributes: str = "") -> tuple[Path, Path, Path | None]:
    """The images, the partition file and the file of attributes of a source; None if there are no attributes.

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
    list_file = _find_table(partition, PARTITIONS, folders, "Eval")
    if list_file is None:
        raise UserError(
            "--partition",
            got=partition or f"no {PARTITIONS[0]} (or .csv) beside {images}",
            expected=NEEDS,
            remedy="give the path of CelebA's list_eval_partition.txt",
        )
    table = _find_table(attributes, ATTRIBUTES, [*folders, list_file.parent, list_file.parent.parent], "Anno")
    if table is None and attributes:
        raise UserError(
            "--attributes",
            got=printable(attributes),
            expected=f"the file {ATTRIBUTES[0]} (or .csv)",
            remedy="correct the path",
        )
    return images, list_file, table


def _find_table(given: str, names: tuple[str, ...], folders: Iterable[Path], below: str) -> Path | None:
    """The table that an option names; else one of these names in one of the folders, or below it where CelebA's
    authors have it; None if it is not there.
    """
    candidates = (
        [Path(given)]
        if given
        else [folder / inner / name for name in names for folder in folders for inner in ("", below)]
    )
    return next((path for path in candidates if path.is_file()), None)


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
    images, partition, attributes = find(require_source(options.source, NEEDS), options.partition, options.attributes)
    source = Celeba(images, partition, options.split, attributes)
    if source.attributes:
        report_attributes(source.attributes)
    else:
        print(
            f"No attributes: no {ATTRIBUTES[0]} (or .csv) beside {printable(str(images))}; --attributes PATH gives it.",
            file=sys.stderr,
        )
    return build(source, options)
