"""Shards of images in tables: Parquet files, or a folder that Hugging Face's `datasets` wrote, row by row."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets_prep._files import UNKNOWN, content_of, current_stamp, settled_stamp
from datasets_prep._listing import picture_formats, printable, utf8
from datasets_prep._own import (
    Cut,
    build_own,
    check_names,
    class_names,
    cut_of,
    report_classes,
)
from datasets_prep._source import Encoded, Item, SourceDefaults, digest_of, found_in, require_source
from datasets_prep._tables import SUFFIXES, Table, open_table
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.progress import progress
from drl_dist.data.index import CLASSES
from drl_dist.data.pixels.pictures import PictureError

if TYPE_CHECKING:
    from datasets_prep.parquet import Options

NEEDS = "a folder with .parquet or .arrow files, one such file, or a pattern such as 'data/train-*.parquet'"
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
"""Words in the paths of files that say which part of a data set they are."""
NO_LABELS = "none"


@dataclass(frozen=True)
class TablePart:
    """Some rows of the tables."""

    tables: tuple[Table, ...]
    rows: tuple[NDArray[np.int64], ...]
    """Increasing places within each table."""
    image_column: str
    label_column: str | None
    labels: Mapping[Any, int]
    """Label of each value of the column."""
    cut: Cut

    def items(self) -> Iterator[Item]:
        """The images in order."""
        columns = [self.image_column, *([self.label_column] if self.label_column else [])]
        for table, rows in zip(self.tables, self.rows, strict=True):
            stamp = settled_stamp(table.path.stat())
            for row, values in table.read(columns, rows):
                data = encoded_in(values[0])
                label = self.labels.get(values[1]) if self.label_column else None
                yield Item(
                    utf8(f"{table.name}:{row}"),
                    partial(_load, data, self.cut),
                    label,
                    content=UNKNOWN if data is None else content_of(data),
                    stamp=stamp,
                )


class ImageTables(SourceDefaults):
    """The images in some tables, in the order of the files' names and of their rows.

    Args:
        base: folder that names of files are relative to.
        files: the files, in order.
        options: of the command, checked.
        left_out: files that are left out, by kind.

    Raises:
        UserError: a file is no table or has not the columns, or there is no row.
    """

    def __init__(self, base: Path, files: Sequence[Path], options: Options, left_out: Mapping[str, int]) -> None:
        self.name, self.split, self.channels = options.name, options.split, options.channels
        self.left_out, self._cut, self._share = left_out, cut_of(options), None
        self._tables = tuple(open_table(base, path) for path in files)
        for table in self._tables:
            _check_column(table, options.image_column, "--image-column", _is_image, "binary, or a struct with bytes")
        first = self._tables[0]
        self._image_column, self._label_column = options.image_column, _label_column(first, options.label_column)
        if self._label_column is not None:
            for table in self._tables:
                _check_column(table, self._label_column, "--label-column", _is_label, "whole numbers or texts")
        self.classes, self._labels = self._find_classes()
        counts = [table.num_rows for table in self._tables]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._rows = np.arange(self._starts[-1], dtype=np.int64)
        if not len(self._rows):
            raise UserError(
                "--source",
                got=f"{counted(len(files), 'table')} without rows",
                expected=NEEDS,
                remedy="give tables with images",
            )
        self.digest = self._digest()

    def _find_classes(self) -> tuple[tuple[str, ...], dict[Any, int]]:
        if self._label_column is None:
            return (), {}
        names = feature_names(self._tables[0].schema, self._label_column)
        if names is not None:
            if len({*names, ""}) <= len(names):
                raise UserError(
                    f"table {self._tables[0].name}",
                    got=f"an empty or repeated name among those of the classes in the column {self._label_column}",
                    expected="different names",
                    remedy="correct its metadata, or leave labels out with --label-column none",
                )
            return names, {label: label for label in range(len(names))}
        values: set[Any] = set()
        for table in self._tables:
            values |= table.values_of(self._label_column)
        # An empty text is the name of no class.
        values -= {None, ""}
        found = class_names(map(str, values), f"classes in the column {self._label_column}")
        number = {name: label for label, name in enumerate(found)}
        return found, {value: number[str(value)] for value in values}

    def _digest(self) -> str:
        rows = b"" if self._share is None else self._rows.astype("<i8").tobytes()
        described = (f"{table.name} {table.size} {table.num_rows}" for table in self._tables)
        columns = f"{self._image_column} {self._label_column or ''}"
        return digest_of([*(text.encode("utf-8", "surrogateescape") for text in described), columns.encode(), rows])

    @property
    def parameters(self) -> dict[str, Any]:
        """See `datasets_prep._source.Source.parameters`."""
        classes: dict[str, Any] = {CLASSES: list(self.classes)} if self.classes else {}
        return self._cut.parameters | classes | ({} if self._share is None else {"share": self._share})

    def __len__(self) -> int:
        return len(self._rows)

    def part(self, start: int, stop: int) -> TablePart:
        """Images `start` to `stop`."""
        return self._part(self._rows[start:stop])

    def _part(self, chosen: NDArray[np.int64]) -> TablePart:
        tables: list[Table] = []
        rows: list[NDArray[np.int64]] = []
        for number, table in enumerate(self._tables):
            first, last = self._starts[number : number + 2]
            inside = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, last)] - first
            if len(inside):
                tables.append(table)
                rows.append(inside)
        return TablePart(tuple(tables), tuple(rows), self._image_column, self._label_column, self._labels, self._cut)

    def stamps(self, start: int, stop: int) -> bytes:
        """The stamp of each image's file."""
        places = np.searchsorted(self._starts, self._rows[start:stop], side="right") - 1
        stamp_of = {place: current_stamp(self._tables[place].path) for place in set(places.tolist())}
        return b"".join(stamp_of[place] for place in places.tolist())

    def contents(self) -> Iterator[bytes]:
        """See `datasets_prep._own.Splittable`; reads every image."""
        with progress("reading images to split them", len(self), 0, "images") as advance:
            for item in self._part(self._rows).items():
                yield item.content or UNKNOWN
                advance(1)

    def chosen(self, places: NDArray[np.int64], split: str, share: float) -> ImageTables:
        """See `datasets_prep._own.Splittable`."""
        other = copy.copy(self)
        other.split, other._share, other._rows = split, share, self._rows[places]
        other.digest = other._digest()
        return other


def encoded_in(value: object) -> bytes | None:
    """The bytes of an encoded image in a value of the image column; None if there are none."""
    found = value.get("bytes") if isinstance(value, dict) else value
    return found if isinstance(found, bytes) and found else None


def _load(data: bytes | None, cut: Cut) -> Encoded:
    if data is None:
        raise PictureError("a row without the bytes of an image")
    return Encoded(data, cut, picture_formats())


def feature_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The class names that Hugging Face's `datasets` keeps in a schema; None without them."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = described["names"] if isinstance(described, dict) else None
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) and names and all(isinstance(one, str) for one in names) else None


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_column(table: Table, column: str, option: str, fits: Any, expected: str) -> None:
    names = table.schema.names
    place = table.schema.get_field_index(column)
    if place >= 0 and fits(table.schema.field(place).type):
        return
    held = ", ".join(f"{printable(name)} ({table.schema.field(name).type})" for name in dict.fromkeys(names))
    raise UserError(
        f"option {option}",
        got=f"{printable(column)}, which {printable(table.name)} "
        + (f"has as {table.schema.field(place).type}" if place >= 0 else f"does not have once among {held[:300]}"),
        expected=f"a column of {expected}",
        remedy=f"name one with {option}",
    )


def _label_column(table: Table, wanted: str) -> str | None:
    if wanted:
        return None if wanted == NO_LABELS else wanted
    place = table.schema.get_field_index("label")
    return "label" if place >= 0 and _is_label(table.schema.field(place).type) else None


def find_tables(source: str, split: str | None) -> tuple[Path, list[Path], Counter[str]]:
    """The files of a source: their common folder, the files in order, and those left out by kind.

    Args:
        source: as the user gave it.
        split: name of the part wanted, where the paths say what they are of; all parts if None.

    Raises:
        UserError: there are none, or none of this part.
    """
    left: Counter[str] = Counter()
    pattern = Path(source)
    if source and not source.startswith("file://") and not pattern.exists() and re.search(r"[*?\[]", source):
        base = Path(*_plain_parts(pattern))
        files = sorted(path for path in base.glob(str(pattern.relative_to(base))) if path.is_file())
        if not files:
            raise UserError(
                "--source", got=f"{printable(source)}, which matches no file", expected=NEEDS, remedy="correct it"
            )
    else:
        path = require_source(source, NEEDS)
        base = path if path.is_dir() else path.parent
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    # What `datasets` computes from a data set, and hidden files, are none of its own.
    tables = [one for one in files if one.suffix.lower() in SUFFIXES and not one.name.startswith((".", "cache-"))]
    if not tables:
        raise UserError("--source", got=found_in(base), expected=NEEDS, remedy="give the folder of the tables")
    left.update(one.suffix.lower() or "without a suffix" for one in files if one not in set(tables))
    by_split: dict[str | None, list[Path]] = {}
    for one in tables:
        by_split.setdefault(_split_of(one.relative_to(base)), []).append(one)
    named = sorted(name for name in by_split if name is not None)
    if split is not None and named:
        wanted = SPLIT_NAMES.get(split, split)
        if wanted not in by_split:
            raise UserError(
                "--split",
                got=split,
                expected=f"one of the parts that {printable(source)} has: {', '.join(named)}",
                remedy="choose one of these",
            )
        for name, others in by_split.items():
            if name != wanted:
                left[f"file of {name or 'no part'}"] += len(others)
        tables = by_split[wanted]
    return base, tables, left


def _plain_parts(pattern: Path) -> list[str]:
    """The folders of a pattern before the first part that is one."""
    parts: list[str] = []
    for part in pattern.parts:
        if re.search(r"[*?\[]", part):
            break
        parts.append(part)
    return parts or ["."]


def _split_of(path: Path) -> str | None:
    """The part of a data set that the path of a file names; the file's own name counts before its folders'."""
    for part in reversed(path.with_suffix("").parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None


def prepare(options: Options) -> int:
    """Make the shards; the exit status."""
    share = check_names(options)
    base, files, left_out = find_tables(options.source, options.split if share is None else None)
    source = ImageTables(base, files, options, left_out)
    report_classes(source.classes)
    return build_own(source, options, share)
