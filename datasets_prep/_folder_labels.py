"""Labels of the images in a folder: classes by its subfolders, classes and attributes by the metadata beside them."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets_prep._attributes import Attributes
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

MEANINGS = (
    dict.fromkeys(("1", "1.0", "true", "yes"), 1)
    | dict.fromkeys(("0", "0.0", "-1", "-1.0", "false", "no"), -1)
    | {"": 0}
)
"""Values of attributes in a table, in upper or lower case: true, false and unknown. A column of whole numbers of which
some are missing is written as one of fractions."""


@dataclass(frozen=True)
class Labels:
    """Classes of images."""

    names: tuple[str, ...] = ()
    """In the order of their labels."""
    of: Mapping[str, int] = field(default_factory=dict[str, int])
    """Label of each image, by its path below the folder."""
    digest: str = ""
    """Of the labels, where they do not follow from the paths."""


@dataclass(frozen=True)
class _Metadata:
    """The table beside the images."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[Any, Any]]
    """As `csv.DictReader` gives them, or objects of JSON."""

    @property
    def where(self) -> str:
        """What it is, for messages."""
        return f"metadata {printable(str(self.path))}"

    @property
    def key(self) -> str | None:
        """The column of the images' paths, if there is one."""
        return next((name for name in FILE_COLUMNS if name in self.columns), None)

    @property
    def shown(self) -> str:
        """The columns, for messages."""
        return ", ".join(map(printable, self.columns)) or "none"

    def check(self, names: Sequence[str]) -> None:
        """Return if it can be told what each row has in these columns and that of the paths.

        Raises:
            UserError: a column is there twice, or a row has other fields than the first line.
        """
        for name in (self.key, *names):
            if name is not None and self.columns.count(name) > 1:
                raise UserError(
                    self.where,
                    got=f"{self.columns.count(name)} columns {printable(name)}",
                    expected="one column of each name",
                    remedy="correct the table",
                )
        # As `csv` marks a row with other fields than the header.
        for row in self.rows if self.path.suffix == ".csv" else ():
            if None in row or None in row.values():
                raise UserError(
                    self.where,
                    got=f"a row of another length than the first for {printable(str(row[self.key]))}",
                    expected="a field for each column",
                    remedy="correct the table",
                )

    def by_image(self) -> Iterator[tuple[str, dict[Any, Any]]]:
        """The path of an image, and its row, for each row that has one."""
        for row in self.rows:
            if isinstance(name := row.get(self.key), str):
                yield name.removeprefix("./"), row

    def tell_unused(self, found: Iterable[str], images: Sequence[str]) -> None:
        """Say how many of the paths found are those of no image."""
        if unused := sorted(set(found).difference(map(utf8, images))):
            first = printable(unused[0])
            rows = f"The row of {first} is" if len(unused) == 1 else f"{len(unused)} rows, such as that of {first}, are"
            print(f"{rows} not used: no such image is taken from the folder of {self.path.name}.", file=sys.stderr)


def labels_of(folder: Path, images: Sequence[str], kind: str, column: str, *, has_attributes: bool = False) -> Labels:
    """The classes of a folder's images.

    Args:
        folder: the folder.
        images: paths below it.
        kind: auto, folders, metadata or none; see `datasets_prep.folder.Options`.
        column: of the metadata.
        has_attributes: whether the metadata are there for attributes, and need no classes.

    Raises:
        UserError: the metadata cannot be read, or an image has no class where all must have one.
    """
    if kind == "none":
        return Labels()
    table = _table_in(folder)
    if kind == "metadata" and table is None:
        raise UserError(
            "--labels",
            got=f"metadata, but no {' or '.join(METADATA)} in {printable(str(folder))}",
            expected="a table with the columns file_name and --label-column",
            remedy="add the table, or choose other --labels",
        )
    if table is not None and kind in ("auto", "metadata"):
        metadata = _read(table, "the columns file_name and --label-column", "choose other --labels")
        found = _classes_in(metadata, column, is_wanted=kind == "metadata", is_told=not has_attributes)
        if found is not None:
            if not has_attributes:
                metadata.tell_unused(found, images)
            return _from_table(metadata, found, images)
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


def _from_table(metadata: _Metadata, found: Mapping[str, str], images: Sequence[str]) -> Labels:
    missing = [path for path in images if utf8(path) not in found]
    if missing:
        raise UserError(
            metadata.where,
            got=f"no class of {counted(len(missing), 'image')} (the first: {printable(missing[0])})",
            expected="a row with a class for every image",
            remedy="complete the table, or choose --labels none",
        )
    by_path = {path: found[utf8(path)] for path in images}
    names = class_names(by_path.values(), f"classes in {printable(str(metadata.path))}")
    number = {name: label for label, name in enumerate(names)}
    digest = digest_of(f"{utf8(path)} {name}".encode() for path, name in sorted(by_path.items()))
    return Labels(names, {path: number[name] for path, name in by_path.items()}, digest)


def _classes_in(metadata: _Metadata, column: str, *, is_wanted: bool, is_told: bool) -> dict[str, str] | None:
    """The class of each image that a table lists; None if it has no classes and needs none, which may be told."""
    columns, key = metadata.columns, metadata.key
    if key is None or column not in columns:
        if not is_wanted:
            if key is not None and is_told:
                shown = printable(", ".join(name for name in columns if name != key) or "none")
                print(
                    f"No labels from {metadata.path.name}: its columns beside {key} are {shown}; --label-column names "
                    "that of the classes.",
                    file=sys.stderr,
                )
            return None
        raise UserError(
            metadata.where,
            got=f"the columns {metadata.shown}",
            expected=f"file_name and {printable(column)}",
            remedy="name the column of the classes with --label-column",
        )
    metadata.check([column])
    found: dict[str, str] = {}
    for path, row in metadata.by_image():
        name = "" if (value := row.get(column)) is None else str(value).strip()
        if isinstance(value, list | dict):
            raise UserError(
                metadata.where,
                got=f"the class {printable(name[:60])} of {printable(path)}",
                expected="a text or a number",
                remedy="correct the table, or choose another --label-column",
            )
        if name and found.setdefault(path, name) != name:
            raise UserError(
                metadata.where,
                got=f"two classes of {printable(path)}",
                expected="one class for each image",
                remedy="correct the table",
            )
    return found


def attributes_of(folder: Path, images: Sequence[str], option: str) -> Attributes:
    """The attributes of a folder's images.

    Args:
        folder: the folder.
        images: paths below it.
        option: the columns of its metadata that have them, with commas between; none if empty.

    Raises:
        UserError: there is no metadata, it cannot be read or lacks a column or an image, or a value is none of those
            that an attribute has.
    """
    if not option:
        return Attributes()
    names = [name.strip() for name in option.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise UserError(
            "--attribute-columns",
            got=printable(option),
            expected="names of different columns with commas between, such as smiling,hat",
            remedy="correct it",
        )
    table = _table_in(folder)
    if table is None:
        raise UserError(
            "--attribute-columns",
            got=f"{printable(option)}, but no {' or '.join(METADATA)} in {printable(str(folder))}",
            expected="a table with the columns file_name and these",
            remedy="add the table, or leave the option out",
        )
    metadata = _read(table, "the columns file_name and --attribute-columns", "leave --attribute-columns out")
    where = metadata.where
    if metadata.key is None or not {*metadata.columns} >= {*names}:
        raise UserError(
            where,
            got=f"the columns {metadata.shown}",
            expected=f"file_name and {', '.join(map(printable, names))}",
            remedy="correct --attribute-columns or the table",
        )
    metadata.check(names)
    found: dict[str, tuple[int, ...]] = {}
    for path, row in metadata.by_image():
        values = tuple(_attribute(row.get(name), f"{where}, column {printable(name)}", path) for name in names)
        if found.setdefault(path, values) != values:
            raise UserError(
                where,
                got=f"different attributes of {printable(path)} in two rows",
                expected="one row for each image",
                remedy="correct the table",
            )
    if missing := [path for path in images if utf8(path) not in found]:
        raise UserError(
            where,
            got=f"no row of {counted(len(missing), 'image')} (the first: {printable(missing[0])})",
            expected="a row for every image, with empty fields for what is unknown",
            remedy="complete the table, or leave --attribute-columns out",
        )
    metadata.tell_unused(found, images)
    return Attributes.of_images(names, {path: found[utf8(path)] for path in images})


def _attribute(value: object, where: str, path: str) -> int:
    """1 (true), -1 (false) or 0 (unknown) for a value of a table."""
    text = "" if value is None else str(value).strip().lower()
    if text not in MEANINGS:
        raise UserError(
            where,
            got=f"{printable(str(value)[:60])} for {printable(path)}",
            expected="1, true or yes, or 0, -1, false or no, or an empty field for unknown",
            remedy="correct the table",
        )
    return MEANINGS[text]


def _table_in(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _read(table: Path, needs: str, otherwise: str) -> _Metadata:
    """A table.

    Args:
        table: the file.
        needs: what it must have, for a message.
        otherwise: what to do without it, for a message.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = read_file(table)[0].decode("utf-8-sig")
        if table.suffix == ".csv":
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            rows: list[dict[Any, Any]] = list(reader)
            columns = tuple(reader.fieldnames or ())
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line that is no JSON object")
            columns = tuple(dict.fromkeys(name for row in rows for name in row))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(
            f"metadata {printable(str(table))}",
            got=" ".join(str(error).split())[:120],
            expected=f"a table in UTF-8 with {needs}",
            remedy=f"correct the file, or {otherwise}",
        ) from error
    return _Metadata(table, columns, rows)
