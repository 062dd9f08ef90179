"""The index of a shard folder: properties of the data set, a row for each shard, and a fingerprint of the whole."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.places import joined
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.data.index_rows import read_rows
from drl_dist.data.pixels.statistics import PixelStatistics
from drl_dist.data.shards import ShardRow

INDEX_NAME = "index.parquet"
FORMAT = "drl_dist.shards"
VERSION = 1
METADATA_KEY = b"drl_dist"
MAX_INDEX_BYTES = 512 * 2**20
MAX_UNPACKED_BYTES = 2 * 2**30
"""Largest size of an index in memory, enough for some 200 million samples."""
MAX_SHARD_BYTES = 16 * 2**30
MAX_SHARDS = 100_000
MAX_RESOLUTION = 4096
TAR_BLOCK = 512
CLASSES, CLASS_COUNTS = "classes", "class_counts"
"""Names in `ShardIndex.made_by`, which readers of every version keep: names of classes, and images of each."""
STANDARD_CLASSES, STANDARD_CLASS_COUNTS = "standard_classes", "standard_class_counts"
"""The same of published data sets, whose classes have the names that everybody gives them. No part of the fingerprint:
shards that were prepared before names were kept are the same data."""
ATTRIBUTES, ATTRIBUTE_COUNTS = "attributes", "attribute_counts"
"""The same of attributes: their names, and of how many images each is true."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".ppm")
"""Ends of the names of pictures, for messages alone."""
MOST_SUBFOLDERS = 16
"""Folders that are looked into, for a message."""
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """A prepared data set: its location, the shape of its images, and its shards."""

    url: str
    """Folder of the shards."""
    name: str
    """Name of the data set, e.g. ``fashion_mnist``."""
    split: str
    """Part of the data set, e.g. ``train``."""
    resolution: int
    """Height and width of every image, in pixels."""
    channels: int
    """1 (grey) or 3 (RGB)."""
    shards: tuple[ShardRow, ...]
    """Rows of the shards, in order of name."""
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that the shards were made with; part of the fingerprint."""
    statistics: PixelStatistics | None = None
    """Of all pixels; None in an index of an earlier version. No part of the fingerprint, for they follow from the
    images: the same images are the same data whether they were measured or not."""

    @cached_property
    def num_samples(self) -> int:
        """Images in all shards."""
        return sum(shard.num_samples for shard in self.shards)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels in the samples' JSON; empty where they have none."""
        return tuple(self.made_by.get(CLASSES) or self.made_by.get(STANDARD_CLASSES, ()))

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Images of each class, in the same order; fewer than `num_samples` together where images have no label."""
        return tuple(self.made_by.get(CLASS_COUNTS) or self.made_by.get(STANDARD_CLASS_COUNTS, ()))

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes, in the order of the samples' JSON; empty where they have none."""
        return tuple(self.made_by.get(ATTRIBUTES, ()))

    @property
    def attribute_counts(self) -> tuple[int, ...]:
        """Of how many images each attribute is true, in the same order."""
        return tuple(self.made_by.get(ATTRIBUTE_COUNTS, ()))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every field except URL, statistics and standard names, 64 hexadecimal digits: the same for equal
        images in equal order."""
        metadata = self._metadata()
        follows = (STANDARD_CLASSES, STANDARD_CLASS_COUNTS)
        metadata["made_by"] = {name: value for name, value in self.made_by.items() if name not in follows}
        digest = hashlib.sha256(_canonical(metadata))
        for shard in self.shards:
            digest.update(_canonical([shard.name, shard.size, shard.sha256, shard.num_samples]))
            digest.update(shard.offsets.astype("<i8").tobytes())
        return digest.hexdigest()

    def check_model(self, *, resolution: int, channels: int) -> None:
        """Return if a model can be trained on the images.

        Raises:
            UserError: the images have another resolution or another number of channels than the model.
        """
        if (self.resolution, self.channels) != (resolution, channels):
            raise UserError(
                f"data {self.url} ({self.name})",
                got=_shape(self.resolution, self.channels),
                expected=f"{_shape(resolution, channels)} as the model has",
                remedy="choose a model of this shape (jobs/train.py makes one; --model.resolution and --model.channels "
                f"change a preset's), or prepare the data with --resolution {resolution}",
            )

    def _metadata(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "split": self.split,
            "resolution": self.resolution,
            "channels": self.channels,
            "num_samples": self.num_samples,
            "made_by": dict(self.made_by),
        }


def write_index(index: ShardIndex) -> None:
    """Write a data set's index, after all shards: its presence means that they are complete.

    Raises:
        UserError: the folder cannot be written.
    """
    metadata = index._metadata() | {"fingerprint": index.fingerprint}
    if index.statistics is not None:
        values = index.statistics.as_json()
        metadata["statistics"] = values | {"sha256": _sealed(values, index.fingerprint)}
    schema = pa.schema(
        [
            ("name", pa.string()),
            ("size", pa.int64()),
            ("sha256", pa.string()),
            ("num_samples", pa.int64()),
            ("offsets", pa.list_(pa.int64())),
        ],
        metadata={METADATA_KEY: _canonical(metadata)},
    )
    columns = {
        "name": [shard.name for shard in index.shards],
        "size": [shard.size for shard in index.shards],
        "sha256": [shard.sha256 for shard in index.shards],
        "num_samples": [shard.num_samples for shard in index.shards],
        "offsets": [shard.offsets for shard in index.shards],
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    Folder(index.url).write(INDEX_NAME, buffer.getvalue())


def open_index(url: str, *, check_shards: bool = True) -> ShardIndex:
    """Read and check the index of a shard folder.

    Args:
        url: the folder: a path, file://, gs:// or s3://.
        check_shards: also check that every shard exists with the size given in the index.

    Raises:
        UserError: the storage does not answer; there is no index, or it is damaged or of another format; or shards are
            missing or have another size. It is raised within a minute.
    """
    check_reachable(url)
    folder = Folder(url)
    # Thousands of workers that look at no shard need not list all of them.
    sizes = folder.sizes() if check_shards else {}
    size = sizes.get(INDEX_NAME) if check_shards else folder.size(INDEX_NAME)
    if size is None:
        raise _no_index(url, folder.sizes())
    if size > MAX_INDEX_BYTES:
        raise _bad(url, f"{size} bytes", f"at most {MAX_INDEX_BYTES} bytes")
    try:
        index = parse_index(url, folder.read(INDEX_NAME))
    except UserError:
        if folder.local is not None:
            raise
        # Read once more: the first copy may have been damaged in transit.
        index = parse_index(url, folder.read(INDEX_NAME))
    if check_shards:
        for shard in index.shards:
            if sizes.get(shard.name) != shard.size:
                found = f"{sizes[shard.name]} bytes" if shard.name in sizes else "no such file"
                raise UserError(
                    f"shard {folder.url_of(shard.name)}",
                    got=found,
                    expected=f"{shard.size} bytes as its index says",
                    remedy="copy the shard again, or remove the folder and prepare the data again",
                )
    return index


def _no_index(url: str, sizes: Mapping[str, int]) -> UserError:
    """What a folder without an index holds instead, and what to do with it."""
    subfolders = [name for name in Folder(url).names() if name not in sizes and not name.startswith(".")]
    # A data set may have as many folders as classes; those of its parts are few.
    held = {name: Folder(joined(url, name)).sizes() for name in subfolders[:MOST_SUBFOLDERS]}
    parts = sorted((name for name in held if INDEX_NAME in held[name]), key=lambda name: (name != "train", name))
    names = [*sizes, *(name for inside in held.values() for name in inside)]
    pictures, tables = ([name for name in names if name.lower().endswith(kind)] for kind in (PICTURES, ".parquet"))
    got = f"{counted(len(sizes), 'file')} but no {INDEX_NAME}" if sizes else "an empty or missing folder"
    remedy = "correct the URL, or make the shards with python -m datasets_prep.<name>"
    if parts:
        got = f"a folder that holds {_listed(parts)}, each with image shards of its own"
        remedy = f"give {joined(url, parts[0])}"
    elif pictures:
        got = f"{'at least ' if len(held) < len(subfolders) else ''}{counted(len(pictures), 'picture')} but no shards"
        remedy = f"make shards of them: python -m datasets_prep.folder --source {shlex.quote(url)} --out FOLDER"
    elif tables:
        got = f"{counted(len(tables), 'Parquet table')} but no {INDEX_NAME}"
        remedy = f"make shards of them: python -m datasets_prep.parquet --source {shlex.quote(url)} --out FOLDER"
    elif subfolders:
        got = (
            f"{got if sizes else f'no {INDEX_NAME}'}, and the folder{'s' * (len(subfolders) > 1)} {_listed(subfolders)}"
        )
    return UserError(f"data {url}", got=got, expected=f"image shards with their {INDEX_NAME}", remedy=remedy)


def _listed(names: Sequence[str]) -> str:
    shown = [*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def parse_index(url: str, data: bytes) -> ShardIndex:
    """The index in the bytes of an index file, every field checked.

    Raises:
        UserError: the bytes are not an index, or it contradicts itself.
    """
    try:
        file = _opened(url, data)
        metadata = json.loads((file.schema_arrow.metadata or {})[METADATA_KEY])
        if metadata["format"] != FORMAT or metadata["version"] != VERSION:
            raise _bad(
                url,
                f"format {metadata['format']!r} version {metadata['version']!r}",
                f"format {FORMAT} version {VERSION}",
            )
        rows, counts = read_rows(file)
        index = ShardIndex(
            url=url,
            name=str(metadata["name"]),
            split=str(metadata["split"]),
            resolution=int(metadata["resolution"]),
            channels=int(metadata["channels"]),
            shards=rows,
            made_by=dict(metadata["made_by"]),
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        # Arrow raises OSError for some kinds of damage, although only memory is read here.
        raise _bad(
            url,
            f"{type(error).__name__}: {' '.join(str(error).split())[:120]}",
            f"a Parquet file in format {FORMAT} version {VERSION}",
        ) from error
    _check(index, counts, metadata)
    statistics = _statistics(index, metadata)
    if statistics is None:
        return index
    measured = replace(index, statistics=statistics)
    # What does not depend on the statistics is not computed again.
    vars(measured).update({name: vars(index)[name] for name in ("num_samples", "fingerprint")})
    return measured


def _statistics(index: ShardIndex, metadata: Mapping[str, Any]) -> PixelStatistics | None:
    """The statistics in the metadata of an index that is in order otherwise."""
    if (stored := metadata.get("statistics")) is None:
        return None
    try:
        values = {name: value for name, value in stored.items() if name != "sha256"}
        if stored["sha256"] == _sealed(values, index.fingerprint):
            return PixelStatistics.from_json(values, index.channels * index.resolution**2)
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise _bad(index.url, "damaged statistics of the pixels", "those of its images, with their checksum")


def _opened(url: str, data: bytes) -> pq.ParquetFile:
    """The file, if by its metadata it is not too large to unpack: zstd can compress 10,000 to 1."""
    file = pq.ParquetFile(pa.BufferReader(data))
    metadata = file.metadata
    if metadata.num_rows > MAX_SHARDS:
        raise _bad(url, f"{metadata.num_rows} rows", f"at most {MAX_SHARDS} shards")
    # Runs of one value are packed even without a codec, so the number of values counts as well as the size.
    unpacked = sum(
        max(column.total_uncompressed_size, 8 * column.num_values)
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        for column in map(group.column, range(group.num_columns))
    )
    if unpacked > MAX_UNPACKED_BYTES:
        raise _bad(url, f"{unpacked} bytes once unpacked", f"at most {MAX_UNPACKED_BYTES} bytes")
    return file


def _check(index: ShardIndex, counts: Sequence[int], metadata: Mapping[str, Any]) -> None:
    url = index.url
    if not 1 <= index.resolution <= MAX_RESOLUTION or index.channels not in (1, 3):
        raise _bad(
            url, _shape(index.resolution, index.channels), f"1 to {MAX_RESOLUTION} pixels square with 1 or 3 channels"
        )
    if not 1 <= len(index.shards) <= MAX_SHARDS:
        raise _bad(url, counted(len(index.shards), "shard"), f"1 to {MAX_SHARDS} shards")
    names = [shard.name for shard in index.shards]
    if names != sorted(set(names)):
        raise _bad(url, "shard names repeated or out of order", "distinct names in order")
    for shard, count in zip(index.shards, counts, strict=True):
        if not _SAFE_NAME.fullmatch(shard.name) or not shard.name.endswith(".tar"):
            raise _bad(url, f"the shard name {shard.name[:100]!r}", "a plain file name ending in .tar")
        if not _SHA256.fullmatch(shard.sha256):
            raise _bad(url, f"checksum {shard.sha256[:80]!r} of {shard.name}", "64 hexadecimal digits")
        if not 2 * TAR_BLOCK <= shard.size <= MAX_SHARD_BYTES:
            raise _bad(url, f"{shard.size} bytes for {shard.name}", f"at most {MAX_SHARD_BYTES} bytes")
        if count != shard.num_samples or count < 1:
            held = f"{counted(count, 'sample')} but {counted(shard.num_samples, 'offset')} for {shard.name}"
            raise _bad(url, held, "one offset a sample")
        if (
            shard.offsets[0] != 0
            or np.any(np.diff(shard.offsets) < 2 * TAR_BLOCK)
            or np.any(shard.offsets % TAR_BLOCK)
            or shard.offsets[-1] + 2 * TAR_BLOCK > shard.size
        ):
            raise _bad(url, f"impossible offsets for {shard.name}", "offsets that rise from 0 within the file")
    _check_names(index, CLASSES, CLASS_COUNTS, is_exclusive=True)
    _check_names(index, STANDARD_CLASSES, STANDARD_CLASS_COUNTS, is_exclusive=True)
    _check_names(index, ATTRIBUTES, ATTRIBUTE_COUNTS, is_exclusive=False)
    if metadata.get("num_samples") != index.num_samples or metadata.get("fingerprint") != index.fingerprint:
        raise _bad(url, "a fingerprint or count that does not fit its rows", "the fingerprint of these rows")


def _check_names(index: ShardIndex, of_names: str, of_counts: str, *, is_exclusive: bool) -> None:
    names, counts = index.made_by.get(of_names), index.made_by.get(of_counts)
    if names is None and counts is None:
        return
    if (
        not isinstance(names, list)
        or not isinstance(counts, list)
        or len(names) != len(counts)
        or not all(isinstance(name, str) for name in names)
        or not all(type(count) is int and count >= 0 for count in counts)
        or (sum(counts) if is_exclusive else max(counts, default=0)) > index.num_samples
    ):
        raise _bad(index.url, f"{of_names} that do not fit their counts", "a name and a number of images for each")


def _bad(url: str, got: str, expected: str) -> UserError:
    return UserError(
        f"index {Folder(url).url_of(INDEX_NAME)}",
        got=got,
        expected=expected,
        remedy="copy the index again, or prepare the data again",
    )


def _shape(resolution: int, channels: int) -> str:
    return f"{resolution}x{resolution} pixels with {channels} channel{'s' if channels > 1 else ''}"


def _sealed(statistics: Mapping[str, Any], fingerprint: str) -> str:
    """Checksum of statistics, which the fingerprint does not cover, and of the data that they belong to."""
    return hashlib.sha256(_canonical([dict(statistics), fingerprint])).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
