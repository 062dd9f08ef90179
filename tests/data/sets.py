"""Small shard folders whose images show which sample they are."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drl_dist.data.filesystem import Folder
from drl_dist.data.index import METADATA_KEY, ShardIndex, write_index
from drl_dist.data.pixels.statistics import measure_images
from drl_dist.data.shards import Sample, ShardRow, encode_png, pack_shard, shard_name


def pixels_of(sample_id: int, channels: int = 1, resolution: int = 8) -> NDArray[np.uint8]:
    """Noise that begins with the sample's number, so that no mirrored image passes for another."""
    pixels = np.random.Generator(np.random.PCG64(sample_id)).integers(0, 256, (channels, resolution, resolution))
    pixels[0, 0, :2] = divmod(sample_id, 256)
    return pixels.astype(np.uint8)


def sample_of(sample_id: int, channels: int = 1, resolution: int = 8) -> Sample:
    return Sample(sample_id, encode_png(pixels_of(sample_id, channels, resolution)), {"label": sample_id % 10})


def write_set(
    url: str,
    counts: tuple[int, ...] = (16, 16, 16, 5),
    *,
    channels: int = 1,
    resolution: int = 8,
    measured: bool = False,
) -> ShardIndex:
    """Shards with the given numbers of samples, ids from 0 on, and their index, with or without statistics."""
    rows: list[ShardRow] = []
    first = 0
    for number, count in enumerate(counts):
        samples = [sample_of(first + place, channels, resolution) for place in range(count)]
        data, row = pack_shard(shard_name("toy", "train", number), samples)
        Folder(url).write(row.name, data)
        rows.append(row)
        first += count
    index = ShardIndex(url=url, name="toy", split="train", resolution=resolution, channels=channels, shards=tuple(rows))
    if measured:
        images = np.stack([pixels_of(sample, channels, resolution) for sample in range(sum(counts))])
        index = replace(index, statistics=measure_images(images))
    write_index(index)
    return index


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, list[Any]]], None]) -> None:
    """Change the metadata and the columns of an index in its file."""
    table = pq.read_table(path)
    metadata, columns = json.loads(table.schema.metadata[METADATA_KEY]), table.to_pydict()
    change(metadata, columns)
    schema = table.schema.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    pq.write_table(pa.table(columns, schema=schema), path)


def sample_ids(images: NDArray[np.uint8]) -> list[int]:
    """The numbers in images (B, C, H, W) of `pixels_of`."""
    return (images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]).tolist()


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    """A tar with any members, for shards that a stranger made."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
