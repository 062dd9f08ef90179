"""The tables of CelebA, as its authors publish them and as Kaggle does: the partition, and the attributes."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

from datasets_prep._attributes import Attributes
from datasets_prep._files import read_file
from datasets_prep._listing import printable
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError

IMAGE_COLUMNS = ("image_id", "image", "filename")
PARTS = {"train": "0", "val": "1", "test": "2"}


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
    lines = _lines(data)
    entries = [_fields(line) for line in lines]
    if entries and entries[0] in [[name, "partition"] for name in IMAGE_COLUMNS]:
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


def read_attributes(path: Path, data: bytes, images: Sequence[str]) -> Attributes:
    """The attributes of some images.

    The authors' file begins with a line that has the number of images and one that has the names of the attributes;
    Kaggle's begins with the names of its columns. Both then have the image and its values in each line.

    Args:
        path: the file, for messages.
        data: its content.
        images: names of the images.

    Raises:
        UserError: the file has other lines, lists an image twice, or lacks one.
    """
    lines = _lines(data)
    first, second = (_fields(line) for line in [*lines[:2], "", ""][:2])
    if is_official := len(first) == 1 and first[0].isdecimal():
        names, start = second, 2
    else:
        names, start = (first[1:] if first[0] in IMAGE_COLUMNS else []), 1
    if not names or len(set(names)) != len(names) or not all(names):
        shown = " / ".join(line[:60] for line in lines[:2])
        raise _bad(path, f"the first lines {shown!r}", "the number of images and the names of attributes, or Kaggle's")
    if is_official and int(first[0]) != len(lines) - start:
        raise _bad(path, f"{counted(len(lines) - start, 'line')} of images", f"{first[0]} as its first line says")
    value_of = {"1": 1, "-1": -1}
    wanted, seen = set(images), set[str]()
    values: dict[str, tuple[int, ...]] = {}
    for line in lines[start:]:
        image, *texts = _fields(line)
        if len(texts) != len(names) or image in seen or not value_of.keys() >= set(texts):
            raise _bad(
                path,
                f"the line {line[:80]!r}" + (f", after another one for {image}" if image in seen else ""),
                f"one line for each image, with 1 or -1 for each of {counted(len(names), 'attribute')}",
            )
        seen.add(image)
        if image in wanted:
            values[image] = tuple(value_of[text] for text in texts)
    if missing := [image for image in images if image not in values]:
        raise _bad(
            path,
            f"no line for {counted(len(missing), 'image')} of the partition (the first: {printable(missing[0])})",
            "a line for every image",
        )
    return Attributes.of_images(names, values)


def _bad(path: Path, got: str, expected: str) -> UserError:
    return UserError(f"attributes {printable(str(path))}", got=got, expected=expected, remedy="download it again")


def _lines(data: bytes) -> list[str]:
    """The lines of a table that are not empty."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if utf16 else "utf-8-sig", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _fields(line: str) -> list[str]:
    # The official table of attributes has eight million fields.
    fields = re.split(r"\s*[,;]\s*|\s+", line) if "," in line or ";" in line else line.split() or [""]
    return [field.strip("\"'") for field in fields] if '"' in line or "'" in line else fields
