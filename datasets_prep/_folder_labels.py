"""Classes of the images in a folder: its subfolders, or the metadata beside them."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets_prep._files import read_file
from datasets_prep._listing import printable, utf8
from datasets_prep._own import class_names
from datasets_prep._source import digest_of
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError

METADATA = ("metadata.csv", "metadata.jsonl")
"""Tables of the Hugging Face layout; the first that exists counts."""
FILE_COLUMNS = ("file_name", "image_file_name")
PARTS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})
"""Subfolders of these names are parts of a data set, not classes."""


@dataclass(frozen=True)
class Labels:
    """Classes of images."""

    names: tuple[str, ...] = ()
    """In the order of their labels."""
    of: Mapping[str, int] = field(default_factory=dict[str, int])
    """Label of each image, by its path below the folder."""
    digest: str = ""
    """Of the labels, where they do not follow from the paths."""


def labels_of(folder: Path, images: Sequence[str], kind: str, column: str) -> Labels:
    """The classes of a folder's images.

    Args:
        folder: the folder.
        images: paths below it.
        kind: auto, folders, metadata or none; see `datasets_prep.folder.Options`.
        column: of the metadata.

    Raises:
        UserError: the metadata cannot be read, or an image has no class where all must have one.
    """
    if kind == "none":
        return Labels()
    table = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if kind == "metadata" and table is None:
        raise UserError(
            "--labels",
            got=f"metadata, but no {' or '.join(METADATA)} in {printable(str(folder))}",
            expected="a table with the columns file_name and --label-column",
            remedy="add the table, or choose other --labels",
        )
    if table is not None and kind in ("auto", "metadata"):
        found = _read_table(table, column, is_wanted=kind == "metadata")
        if found is not None:
            return _from_table(table, found, images)
    return _from_folders(folder, images, is_wanted=kind == "folders")


def _from_folders(folder: Path, images: Sequence[str], *, is_wanted: bool) -> Labels:
    tops = {path: utf8(path.partition("/")[0]) for path in images if "/" in path}
    if len(tops) < len(images):
        if is_wanted:
            outside = next(path for path in images if path not in tops)
            raise UserError(
                "--labels",
                got=f"folders, but {printable(outside)} lies in no subfolder of {printable(str(folder))}",
                expected="every image in the subfolder of its class",
                remedy="move it, or choose other --labels",
            )
        _tell_outside([path for path in images if path not in tops], set(tops.values()))
        return Labels()
    names = class_names(tops.values(), f"subfolders of {printable(str(folder))}")
    if not is_wanted and {name.lower() for name in names} <= PARTS:
        print(
            f"No labels: the subfolders {', '.join(names)} are parts of a data set; --source can be one of them.",
            file=sys.stderr,
        )
        return Labels()
    if not is_wanted and len(names) < 2:
        return Labels()
    number = {name: label for label, name in enumerate(names)}
    return Labels(names, {path: number[top] for path, top in tops.items()})


def _tell_outside(outside: Sequence[str], tops: set[str]) -> None:
    """Say which images keep the others from having labels, where the subfolders look like classes."""
    if len(tops) < 2 or {name.lower() for name in tops} <= PARTS:
        return
    first = printable(outside[0])
    lies, it = (
        (f"{first} lies", "it") if len(outside) == 1 else (f"{len(outside)} images, such as {first}, lie", "them")
    )
    print(f"No labels: {lies} in no subfolder; move {it}, or give --labels none.", file=sys.stderr)


def _from_table(table: Path, found: Mapping[str, str], images: Sequence[str]) -> Labels:
    missing = [path for path in images if utf8(path) not in found]
    if missing:
        raise UserError(
            f"metadata {printable(str(table))}",
            got=f"no class of {counted(len(missing), 'image')} (the first: {printable(missing[0])})",
            expected="a row with a class for every image",
            remedy="complete the table, or choose --labels none",
        )
    by_path = {path: found[utf8(path)] for path in images}
    names = class_names(by_path.values(), f"classes in {printable(str(table))}")
    number = {name: label for label, name in enumerate(names)}
    digest = digest_of(f"{utf8(path)} {name}".encode() for path, name in sorted(by_path.items()))
    return Labels(names, {path: number[name] for path, name in by_path.items()}, digest)


def _read_table(table: Path, column: str, *, is_wanted: bool) -> dict[str, str] | None:
    """The class of each image that a table lists; None if it has no classes and needs none."""
    where = f"metadata {printable(str(table))}"
    try:
        text = read_file(table)[0].decode("utf-8-sig")
        rows: list[dict[str, Any]] = (
            [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)]
            if table.suffix == ".csv"
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line that is no JSON object")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            where,
            got=" ".join(str(error).split())[:120],
            expected="a table in UTF-8 with the columns file_name and --label-column",
            remedy="correct the file, or choose other --labels",
        ) from error
    columns: list[str] = list(rows[0]) if rows else []
    key = next((name for name in FILE_COLUMNS if name in columns), None)
    if key is None or column not in columns:
        if not is_wanted:
            if key is not None:
                shown = printable(", ".join(name for name in columns if name != key) or "none")
                print(
                    f"No labels from {table.name}: its columns beside {key} are {shown}; --label-column names that of "
                    "the classes.",
                    file=sys.stderr,
                )
            return None
        raise UserError(
            where,
            got=f"the columns {', '.join(map(str, columns)) or 'none'}",
            expected=f"file_name and {column}",
            remedy="name the column of the classes with --label-column",
        )
    found: dict[str, str] = {}
    for row in rows:
        name, value = row.get(key), row.get(column)
        if isinstance(name, str) and value is not None and value != "":
            path = name.removeprefix("./")
            if found.setdefault(path, str(value)) != str(value):
                raise UserError(
                    where,
                    got=f"two classes of {printable(path)}",
                    expected="one class for each image",
                    remedy="correct the table",
                )
    return found
