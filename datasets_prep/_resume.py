"""Resuming in an output folder: its finished data, shards of an earlier start, or files to refuse."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from datasets_prep._identity import STAMPS_NAME, Change, Seen, compare_with_prepared, drop_changed
from datasets_prep._labels import check_counts, in_words
from datasets_prep._left_out import SMALL, UNREADABLE, UNREADABLE_NAME, report_left_out
from datasets_prep._listing import printable
from datasets_prep._pixels import report_treated
from datasets_prep._source import Source
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.nested import differences
from drl_dist.common.places import in_full, joined
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import (
    ATTRIBUTE_COUNTS,
    CLASS_COUNTS,
    INDEX_NAME,
    STANDARD_CLASS_COUNTS,
    ShardIndex,
    open_index,
)
from drl_dist.data.manifest import MANIFEST_NAME
from drl_dist.data.pixels.statistics import PixelSums
from drl_dist.data.shards import ShardRow, shard_name
from drl_dist.jobs.common.output.job_folder import read_json
from drl_dist.jobs.common.output.job_folder import refuse_foreign as refuse_foreign_files
from drl_dist.jobs.common.output.job_records import RECORDS_FOLDER

PARAMETERS_NAME = "parameters.json"
PROGRESS_FOLDER = RECORDS_FOLDER


def begun(folder: Folder, records: Folder) -> tuple[ShardIndex | None, dict[str, Any] | None]:
    """The index of a finished output, else None, and the identity with which the output was begun, None if unknown.

    Raises:
        UserError: it holds generated images, or something that is damaged; or the storage does not answer.
    """
    if INDEX_NAME in (names := folder.sizes()):
        index = open_index(folder.url)
        if MANIFEST_NAME in names or "ema_sha256" in index.made_by:
            raise UserError(
                f"output {folder.url}",
                got=f"{counted(index.num_samples, 'image')} that a model has generated",
                expected="an empty folder, or one that this command began",
                remedy="choose another --out",
            )
        made = {"name": index.name, "split": index.split, "channels": index.channels} | dict(index.made_by)
        for outcome in (UNREADABLE, SMALL, "treated", CLASS_COUNTS, STANDARD_CLASS_COUNTS, ATTRIBUTE_COUNTS):
            made.pop(outcome, None)
        return index, made
    return None, read_json(records, PARAMETERS_NAME)


def is_begun(folder: Folder) -> bool:
    """Whether an output was begun or finished here."""
    return INDEX_NAME in folder.sizes() or PARAMETERS_NAME in Folder(joined(folder.url, PROGRESS_FOLDER)).sizes()


def refuse_foreign(folder: Folder, source: Source, num_shards: int) -> None:
    """Return if a folder without an identity is empty.

    Raises:
        UserError: it holds something.
    """
    shards = [shard_name(source.name, source.split, number) for number in range(num_shards)]
    records = [f"{number:05d}.json" for number in range(num_shards)]
    own = map(re.escape, [UNREADABLE_NAME, STAMPS_NAME, *shards])
    refuse_foreign_files(folder.url, own, below={PROGRESS_FOLDER: list(map(re.escape, records))})


def report_prepared(folder: Folder, index: ShardIndex, source: Source, shard_size: int) -> None:
    """Print that the output is complete.

    Raises:
        UserError: images have changed since.
    """
    remark = compare_with_prepared(source, shard_size, folder, folder.sizes().get(STAMPS_NAME))
    print(f"{in_full(folder.url)} already holds {counted(index.num_samples, 'image')}; nothing to do.", file=sys.stderr)
    if remark:
        print(remark, file=sys.stderr)
    report_treated(index.made_by.get("treated", {}))
    report_left_out(source, index.made_by)


def resume(folder: Folder, records: Folder, identity: dict[str, Any], source: Source) -> dict[int, dict[str, Any]]:
    """The records of the shards that an earlier start finished, by number."""
    names = records.sizes()
    if PARAMETERS_NAME not in names:
        records.write(PARAMETERS_NAME, json.dumps(identity, sort_keys=True).encode())
        return {}
    sizes = folder.sizes()
    count = -(-identity["images"] // identity["shard_size"])
    numbers = [number for number in range(count) if f"{number:05d}.json" in names]
    with ThreadPoolExecutor(8) as threads:
        found = dict(
            zip(numbers, threads.map(lambda number: _read_record(records, number, identity), numbers), strict=True)
        )
    kept = {
        number: record
        for number, record in found.items()
        if not record["row"] or sizes.get(record["row"]["name"]) == record["row"]["size"]
    }
    print(f"resuming {folder.url}: {counted(len(kept), 'shard')} finished.", file=sys.stderr)
    unknown = sum(Seen.from_record(record) is None for record in kept.values())
    if unknown and source.stamps(0, 0) is not None:
        print(
            f"{unknown} of them are from an earlier version: it is not known whether the content of their images has "
            "changed since.",
            file=sys.stderr,
        )
    return kept


def _read_record(records: Folder, number: int, identity: dict[str, Any]) -> dict[str, Any]:
    """The record of a shard.

    Raises:
        UserError: it is not a record of a shard.
    """
    name = f"{number:05d}.json"
    try:
        record = json.loads(records.read(name))
        if record["row"]:
            row_of(record)
        if "sums" in record:
            sums = PixelSums.from_json(record["sums"], identity["channels"], identity["resolution"])
            if sums.images != len(record["row"]["offsets"]):
                raise ValueError("sums of other images")
        Seen.from_record(record)
        check_counts(record, identity)
        if all(isinstance(entry["source"], str) and entry["reason"] for entry in record["unreadable"]):
            return record
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise UserError(
        f"record {records.url_of(name)}",
        got="something else",
        expected="what a finished shard was made of, as JSON",
        remedy="remove this file to make its shard again, or choose another --out",
    )


def row_of(record: dict[str, Any]) -> ShardRow:
    """A shard's row of the index, from its record."""
    row = record["row"]
    return ShardRow(row["name"], row["size"], row["sha256"], np.array(row["offsets"], dtype=np.int64))


def forget_changed(
    folder: Folder, source: Source, shard_size: int, finished: dict[int, dict[str, Any]]
) -> list[Change]:
    """Remove shards whose images have changed from the finished ones, and print their number."""
    rows = {number: record["row"] for number, record in finished.items()}
    changes = drop_changed(source, shard_size, finished)
    for change in changes:
        if rows[change.number]:
            folder.remove(rows[change.number]["name"])
    if changes:
        print(
            f"{counted(len(changes), 'finished shard')} made again, since images have changed (the first: "
            f"{printable(changes[0].image)}).",
            file=sys.stderr,
        )
    return changes


def refuse_other(folder: Folder, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found.get("source") not in (None, wanted["source"]):
        # Two checksums would mean nothing to the user.
        found = found | {"source": "other names, sizes or content of its images"}
        wanted = wanted | {"source": "those found now"}
    if other := differences(*in_words(found, wanted)):
        raise UserError(
            f"output {folder.url}",
            got="data prepared with other options or from another source (" + ", ".join(other) + ")",
            expected="an empty folder, or one prepared with these options",
            remedy="choose another --out, or remove this folder",
        )
