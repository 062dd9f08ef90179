"""Statistics of the pixels of prepared shards: from the records of their shards, or from the shards themselves."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from drl_dist.common.errors import UserError
from drl_dist.common.progress import progress
from drl_dist.data.cache import ShardCache
from drl_dist.data.decode import read_image
from drl_dist.data.index import ShardIndex, write_index
from drl_dist.data.pixels.statistics import PixelSums, total
from drl_dist.data.shards import ShardRow


def with_statistics(index: ShardIndex, records: Iterable[Mapping[str, Any]]) -> ShardIndex:
    """The index with the statistics of its images.

    Args:
        index: of all shards.
        records: of its shards; those without sums, of earlier versions, have their shards read.

    Raises:
        UserError: such a shard is damaged or cannot be read.
    """
    shape = index.channels, index.resolution
    known = {
        record["row"]["name"]: PixelSums.from_json(record["sums"], *shape)
        for record in records
        if record["row"] and "sums" in record
    }
    if missing := [row for row in index.shards if row.name not in known]:
        cache, count = ShardCache(index.url), sum(row.num_samples for row in missing)
        with progress("measuring images prepared by an earlier version", count, 0, "images") as advance:
            for row in missing:
                known[row.name] = _sums_of(index, row, cache)
                advance(row.num_samples)
    sums = total((known[row.name] for row in index.shards), *shape)
    return dataclasses.replace(index, statistics=sums.statistics(index.resolution))


def add_statistics(index: ShardIndex) -> None:
    """Write the statistics of its images into the index of a finished output, and print that they are there."""
    try:
        measured = with_statistics(index, ())
        write_index(measured)
    except UserError as error:
        # The output is what it was: complete, and of use wherever nobody asks for its statistics.
        print(f"Statistics of the pixels could not be added to its index ({error})", file=sys.stderr)
        return
    print(f"Its index has statistics of the pixels now: {describe(measured)}.", file=sys.stderr)


def describe(index: ShardIndex) -> str:
    """Mean and standard deviation of the pixels, in words."""
    assert index.statistics is not None
    return f"pixels of mean {index.statistics.mean:.3f} and standard deviation {index.statistics.std:.3f} in [-1, 1]"


def _sums_of(index: ShardIndex, row: ShardRow, cache: ShardCache) -> PixelSums:
    """The sums of a shard, read image by image."""
    shard = cache.open(row)
    try:
        parts = (PixelSums.of(read_image(shard, sample, index)[None]) for sample in range(row.num_samples))
        return total(parts, index.channels, index.resolution)
    finally:
        shard.close()
