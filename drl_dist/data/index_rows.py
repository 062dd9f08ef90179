"""Reading the rows of an index: of millions of numbers, in every worker, without an object for each of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drl_dist.data.shards import ShardRow

_ROWS_AT_ONCE = 256
_KINDS = {"name": pa.string(), "size": pa.int64(), "sha256": pa.string(), "num_samples": pa.int64()}


def read_rows(file: pq.ParquetFile) -> tuple[tuple[ShardRow, ...], list[int]]:
    """The shards of an index file, whose offsets are parts of one array, and the numbers of samples beside them.

    Raises:
        ValueError, KeyError, pyarrow.ArrowException, OSError: it has other columns, or values are missing.
    """
    rows, counts, end = list[ShardRow](), list[int](), 0
    numbers = np.empty(_most_offsets(file.metadata), dtype=np.int64)
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, use_threads=False):
        names, sizes, checksums, samples = (batch.column(name).cast(kind) for name, kind in _KINDS.items())
        lists = batch.column("offsets").cast(pa.list_(pa.int64()))
        values = lists.flatten()
        columns = {"name": names, "size": sizes, "sha256": checksums, "num_samples": samples}
        for name, column in [*columns.items(), ("offsets", lists), ("offsets", values)]:
            if column.null_count:
                raise ValueError(f"a row without its {name}")
        ends = end + np.cumsum(lists.value_lengths().to_numpy())
        numbers[end : end + len(values)] = values.to_numpy()
        for name, size, sha256, last in zip(
            names.to_pylist(), sizes.to_pylist(), checksums.to_pylist(), ends.tolist(), strict=True
        ):
            rows.append(ShardRow(name, size, sha256, numbers[end:last]))
            end = last
        counts += samples.to_pylist()
    # Otherwise every worker would keep room for what was unpacked, several times that of the numbers.
    pa.default_memory_pool().release_unused()
    return tuple(rows), counts


def _most_offsets(metadata: pq.FileMetaData) -> int:
    columns = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    return sum(column.num_values for column in columns if column.path_in_schema.partition(".")[0] == "offsets")
