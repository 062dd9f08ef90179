"""Detection of images that have changed in a source since shards were made from them.

The identity of a source (`Source.digest`) covers names and sizes where its images are files of their own, so that
computing it reads no image. An image replaced by one of the same name and size is recognised by two short values stored
when it is read: its *stamp*, which comes from the file system or the archive's directory and is cheap to get again, and
its *content*, a checksum of its bytes. An image is read again only if its stamp differs; if its content is still the
same (a file that was touched, a folder that was copied), nothing has changed.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_prep._files import COARSE_SETTLES, FINE_SETTLES, UNKNOWN, WIDTH
from datasets_prep._source import Source
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.progress import progress
from drl_dist.data.filesystem import Folder

STAMPS_NAME = "source.parquet"
"""File beside the index with stamps and contents of all images."""
STAMPS_KEY, STAMPS_VERSION = b"drl_dist.source", b"1"
MAX_STAMPS_BYTES = 2**30
PROGRESS_FROM = 1000
"""Smallest number of images to read again for which progress is shown."""


@dataclass
class Seen:
    """Contents and stamps of a shard's images when they were read: one value of `WIDTH` bytes each, in order."""

    contents: bytes
    stamps: bytes

    def holds(self, count: int) -> bool:
        """Whether it holds values for `count` images."""
        return len(self.contents) == len(self.stamps) == count * WIDTH

    @property
    def unsettled(self) -> bool:
        """Whether an image that could be read has no reliable stamp."""
        contents, stamps = (np.frombuffer(values, dtype=">u8") for values in (self.contents, self.stamps))
        return bool(np.any((stamps == 0) & (contents != 0)))

    def as_json(self) -> dict[str, str]:
        """The values as text, for a shard's record."""
        return {name: base64.b64encode(getattr(self, name)).decode() for name in ("contents", "stamps")}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Seen | None:
        """The values in a shard's record; None if an earlier version wrote it."""
        seen = record.get("seen")
        return seen and Seen(base64.b64decode(seen["contents"]), base64.b64decode(seen["stamps"]))


@dataclass(frozen=True)
class Change:
    """A shard whose images have changed since it was made."""

    number: int
    """Number of the shard."""
    image: str
    """First of its images that has changed."""


def find_changes(
    source: Source, shard_size: int, seen: Mapping[int, Seen], *, first_only: bool = False
) -> tuple[list[Change], dict[int, Seen]]:
    """Shards whose images have changed, and the current values of the others.

    Reads only images whose stamp has changed.

    Args:
        source: source of the images.
        shard_size: images per shard.
        seen: values when the shards were made, by shard number.
        first_only: stop after the first change.
    """
    changes: list[Change] = []
    current: dict[int, Seen] = {}
    again: dict[int, list[int]] = {}
    for number, before in sorted(seen.items()):
        start = number * shard_size
        stop = min(len(source), start + shard_size)
        stamps = source.stamps(start, stop) or b""
        again[number] = [place for place in range(stop - start) if _may_differ(before, stamps, place)]
        current[number] = before
    total = sum(map(len, again.values()))

    def read(advance: Callable[[int], None]) -> None:
        for number, places in again.items():
            if changes and first_only:
                return
            image, current[number] = _read_again(source, number * shard_size, places, current[number])
            if image is not None:
                changes.append(Change(number, image))
            advance(len(places))

    if total < PROGRESS_FROM:
        read(lambda _: None)
    else:
        with progress("comparing images with those prepared", total, 0, "images") as advance:
            read(advance)
    for change in changes:
        current.pop(change.number, None)
    return sorted(changes, key=lambda change: change.number), current


def _may_differ(before: Seen, stamps: bytes, place: int) -> bool:
    here = slice(place * WIDTH, (place + 1) * WIDTH)
    # An unreadable image may have become readable without a change of the file, e.g. by its folder's permissions.
    return before.stamps[here] != stamps[here] or UNKNOWN in (before.stamps[here], before.contents[here])


def _read_again(source: Source, start: int, places: Sequence[int], before: Seen) -> tuple[str | None, Seen]:
    """The first of these images of a shard that has changed, if any, and the shard's current values."""
    first, contents, stamps = None, bytearray(before.contents), bytearray(before.stamps)
    for begin, end in _runs(places):
        for place, item in enumerate(source.part(start + begin, start + end).items(), start=begin):
            here = slice(place * WIDTH, (place + 1) * WIDTH)
            content = item.content or UNKNOWN
            contents[here], stamps[here] = content, item.stamp or UNKNOWN
            if content != before.contents[here]:
                first = first or item.source
    return first, Seen(bytes(contents), bytes(stamps))


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers, each as start and stop."""
    start = 0
    for end in range(1, len(places) + 1):
        if end == len(places) or places[end] != places[end - 1] + 1:
            yield places[start], places[end - 1] + 1
            start = end


def drop_changed(source: Source, shard_size: int, finished: dict[int, dict[str, Any]]) -> list[Change]:
    """Remove the records of shards whose images have changed from `finished`, and update the others."""
    changes: list[Change] = []
    for pause in (0.0, FINE_SETTLES, COARSE_SETTLES):
        time.sleep(pause)
        seen = {number: known for number, record in finished.items() if (known := Seen.from_record(record))}
        found, current = find_changes(source, shard_size, seen)
        changes += found
        for change in found:
            del finished[change.number]
        for number, known in current.items():
            finished[number]["seen"] = known.as_json()
        # A file that has just changed has no reliable stamp yet.
        if not any(known.unsettled for known in current.values()):
            break
    return changes


def copies(seen: Mapping[int, Seen]) -> int:
    """Number of images that are copies of others, byte for byte."""
    contents = np.frombuffer(b"".join(known.contents for known in seen.values()), dtype=">u8")
    # In a large set, CRCs of 32 bits are often equal by chance.
    whole = contents[contents >= 1 << 33]
    return len(whole) - len(np.unique(whole))


def write_stamps(folder: Folder, seen: Mapping[int, Seen]) -> None:
    """Write stamps and contents of the images of a finished folder.

    Raises:
        UserError: the folder cannot be written.
    """
    numbers = sorted(seen)
    schema = pa.schema(
        [("shard", pa.int64()), ("contents", pa.binary()), ("stamps", pa.binary())],
        metadata={STAMPS_KEY: STAMPS_VERSION},
    )
    columns = {
        "shard": numbers,
        "contents": [seen[number].contents for number in numbers],
        "stamps": [seen[number].stamps for number in numbers],
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    folder.write(STAMPS_NAME, buffer.getvalue())


def read_stamps(folder: Folder, size: int | None) -> dict[int, Seen]:
    """Read what `write_stamps` wrote; empty if the file is missing or damaged.

    Args:
        folder: the finished folder.
        size: size of the file in bytes; None if it is missing.
    """
    if size is None or size > MAX_STAMPS_BYTES:
        return {}
    try:
        table = pq.read_table(pa.BufferReader(folder.read(STAMPS_NAME)))
        if (table.schema.metadata or {}).get(STAMPS_KEY) != STAMPS_VERSION:
            return {}
        return {int(row["shard"]): Seen(bytes(row["contents"]), bytes(row["stamps"])) for row in table.to_pylist()}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return {}


def compare_with_prepared(source: Source, shard_size: int, folder: Folder, stamps_size: int | None) -> str:
    """Check that the source still has the content that a finished folder was made from; returns a remark or "".

    Args:
        source: a source with the names and sizes that the folder was made from.
        shard_size: images per shard.
        folder: the finished folder.
        stamps_size: size of its `STAMPS_NAME` in bytes; None if it is missing.

    Raises:
        UserError: images have changed since.
    """
    if source.stamps(0, 0) is None:
        return ""
    stored = read_stamps(folder, stamps_size)
    shards = range(-(-len(source) // shard_size))
    seen = {
        number: stored[number]
        for number in shards
        if number in stored and stored[number].holds(min(shard_size, len(source) - number * shard_size))
    }
    changes, current = find_changes(source, shard_size, seen, first_only=True)
    if changes:
        raise UserError(
            f"output {folder.url}",
            got=f"images made from other content than the source has now (the first that changed: {changes[0].image})",
            expected="the content that they were made from",
            remedy="choose another --out, or remove this folder, to prepare the changed images",
        )
    if current != seen:
        try:
            write_stamps(folder, current)
        except UserError as error:
            return f"The images were compared and are the same, but will be compared each time ({error})"
    if not (missing := len(shards) - len(seen)):
        return ""
    return (
        "Names and sizes of the images are the same; whether their content is could not be compared"
        + ("" if missing == len(shards) else f" for {missing} of {counted(len(shards), 'shard')}")
        + f", since {STAMPS_NAME} is missing or incomplete (folders prepared by earlier versions have none)."
    )
