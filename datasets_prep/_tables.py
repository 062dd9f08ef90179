"""Tables in files, read a few rows at a time: Parquet, and the Arrow files of Hugging Face's `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datasets_prep._listing import printable
from drl_dist.common.errors import UserError

SUFFIXES = (".parquet", ".arrow")
BATCH_ROWS = 32
"""Rows that are in memory at once, besides the page of the file that they come from."""


@dataclass(frozen=True)
class Table:
    """A file of rows; its content is read when it is asked for."""

    path: Path
    name: str
    """Path below the source's folder."""
    size: int
    """Bytes."""
    schema: pa.Schema
    groups: tuple[int, ...]
    """Rows of each row group, or of each record batch of an Arrow file."""

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return sum(self.groups)

    def read(self, columns: Sequence[str], rows: NDArray[np.int64]) -> Iterator[tuple[int, list[Any]]]:
        """Some rows as their place and the values of the columns.

        Args:
            columns: names.
            rows: increasing places.

        Raises:
            UserError: the file is damaged or has changed.
        """
        starts = np.concatenate([[0], np.cumsum(self.groups)])
        with _reading(self.path, self.name):
            needed = np.unique(np.searchsorted(starts, rows, side="right") - 1).tolist()
            for group, batches in self._groups(columns, needed):
                row, last = int(starts[group]), int(starts[group + 1])
                wanted = set(rows[np.searchsorted(rows, row) : np.searchsorted(rows, last)].tolist())
                for batch in batches:
                    values = [batch.column(batch.schema.get_field_index(name)) for name in columns]
                    for place in range(batch.num_rows):
                        if row + place in wanted:
                            yield row + place, [column[place].as_py() for column in values]
                    row += batch.num_rows
                if row != last:
                    raise pa.ArrowInvalid(f"{last - row} rows fewer than before")

    def values_of(self, column: str) -> set[Any]:
        """The different values of a column; errors as `read`."""
        found: set[Any] = set()
        with _reading(self.path, self.name):
            for _, batches in self._groups([column], range(len(self.groups))):
                for batch in batches:
                    found.update(batch.column(batch.schema.get_field_index(column)).unique().to_pylist())
        return found

    def _groups(self, columns: Sequence[str], groups: Sequence[int]) -> Iterator[tuple[int, Iterator[pa.RecordBatch]]]:
        """The batches of each group."""
        if self.path.suffix.lower() == ".parquet":
            # Without pre-buffering, which would hold all of a row group.
            with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=2**16) as file:
                if file.metadata.num_row_groups != len(self.groups):
                    raise pa.ArrowInvalid("other row groups than before")
                for group in groups:
                    yield group, file.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns))
            return
        with pa.memory_map(str(self.path)) as mapped, _arrow_reader(mapped) as reader:
            if isinstance(reader, pa.RecordBatchFileReader):
                for group in groups:
                    yield group, _small(reader.get_batch(group))
                return
            wanted = set(groups)
            for group in range(len(self.groups)):
                # Mapped, not read: what is passed over costs nothing.
                batch = reader.read_next_batch()
                if group in wanted:
                    yield group, _small(batch)


def open_table(base: Path, path: Path) -> Table:
    """The table in a file, of which only its description is read.

    Args:
        base: folder that its name is relative to.
        path: the file.

    Raises:
        UserError: it is no such table.
    """
    name = path.relative_to(base).as_posix()
    with _reading(path, name):
        size = path.stat().st_size
        if path.suffix.lower() == ".parquet":
            with pq.ParquetFile(path) as file:
                metadata = file.metadata
                groups = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
                return Table(path, name, size, file.schema_arrow, groups)
        with pa.memory_map(str(path)) as mapped, _arrow_reader(mapped) as reader:
            if isinstance(reader, pa.RecordBatchFileReader):
                groups = tuple(reader.get_batch(group).num_rows for group in range(reader.num_record_batches))
            else:
                groups = tuple(batch.num_rows for batch in reader)
            return Table(path, name, size, reader.schema, groups)


def _arrow_reader(mapped: pa.MemoryMappedFile) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    """A reader of either of Arrow's two formats; `datasets` writes streams."""
    is_file = mapped.read(6) == b"ARROW1"
    mapped.seek(0)
    return pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)


def _small(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS)


@contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # Arrow raises OSError for some kinds of damage.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"table {printable(str(path))}",
            got=f"damage, or a file that cannot be read ({printable(reason)})",
            expected=f"the rows of {printable(name)}",
            remedy="download or write it again, or leave it out of --source",
        ) from error
