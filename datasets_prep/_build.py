"""Building shards and their index from a source: in parallel, resumable, and byte for byte the same every time.

Shard k holds the source's images k*S to (k+1)*S - 1, so that nothing depends on timing; an unreadable image leaves
a gap in the sample ids. Each finished shard has a record in ``_progress/``, from which a later start resumes; the index
is written last.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_end
from typing import Any

from datasets_prep._identity import STAMPS_NAME, Change, Seen, copies, write_stamps
from datasets_prep._labels import LabelCounts, facts_of, label_counts
from datasets_prep._left_out import (
    IS_SMALL,
    UNREADABLE_NAME,
    TooSmallError,
    in_words,
    numbers_left_out,
    report_entries,
    report_left_out,
)
from datasets_prep._listing import printable
from datasets_prep._options import PictureOptions, PrepOptions
from datasets_prep._pixels import (
    pixel_rules,
    report_treated,
    report_untreated,
    report_untreated_output,
    rule_parameters,
    square_pixels,
    sum_treated,
)
from datasets_prep._resume import (
    PARAMETERS_NAME,
    PROGRESS_FOLDER,
    begun,
    forget_changed,
    refuse_foreign,
    refuse_other,
    report_prepared,
    resume,
    row_of,
)
from datasets_prep._source import Part, Source
from datasets_prep._statistics import add_statistics, describe, with_statistics
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.places import in_full, joined
from drl_dist.common.progress import progress
from drl_dist.common.validation import place_of
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.data.index import INDEX_NAME, MAX_RESOLUTION, MAX_SHARDS, ShardIndex, write_index
from drl_dist.data.pixels.pictures import PictureError, PixelRules
from drl_dist.data.pixels.statistics import PixelSums
from drl_dist.data.shards import MAX_SAMPLE_ID, Sample, encode_png, pack_shard, shard_name
from drl_dist.jobs.common.output.job_records import Records

MAX_ROUNDS = 3
"""Largest number of attempts to make a shard whose images change meanwhile."""


@dataclass(frozen=True)
class _Task:
    number: int
    name: str
    start: int
    part: Part
    channels: int
    resolution: int
    rules: PixelRules
    out: str


def build(source: Source, options: PrepOptions) -> int:
    """Make the shards of a source; returns the exit status of its command.

    Raises:
        UserError: an option is invalid, the output folder holds other files, or no image could be read.
    """
    check_options(source, options)
    check_reachable(options.out)
    folder, records = Folder(options.out), Folder(joined(options.out, PROGRESS_FOLDER))
    index, held = begun(folder, records)
    if (earlier := _begun_earlier(source, options, held)) is not None:
        _report_earlier(folder.url, earlier, source)
        source = earlier
    identity = _identity(source, options)
    if held is None:
        refuse_foreign(folder, source, -(-len(source) // options.shard_size))
    else:
        refuse_other(folder, held, identity)
    if index is not None:
        report_prepared(folder, index, source, options.shard_size)
        if isinstance(options, PictureOptions) and STAMPS_NAME not in folder.sizes():
            report_untreated_output()
        if index.statistics is None:
            add_statistics(index)
        _clean_up(folder, records, source, options, identity)
        return 0
    finished = resume(folder, records, identity, source)
    if isinstance(options, PictureOptions):
        report_untreated(finished.values())
    forget_changed(folder, source, options.shard_size, finished)
    _make_until_still(folder, source, options, finished)

    rows = [row_of(finished[number]) for number in sorted(finished) if finished[number]["row"]]
    unreadable = [entry for number in sorted(finished) for entry in finished[number]["unreadable"]]
    treated = sum_treated(record.get("treated", {}) for record in finished.values())
    if not rows:
        is_small = any(entry.get(IS_SMALL) for entry in unreadable)
        none_is = "readable and large enough" if is_small else "readable"
        raise UserError(
            "source",
            got=f"{counted(len(unreadable), 'image')}, none {none_is} (first: {unreadable[0]['reason']})",
            expected="readable images that are large enough" if is_small else "readable images",
            remedy=("choose a smaller --min-side" if is_small else "check the download") + "; nothing was prepared",
        )
    if unreadable:
        folder.write(UNREADABLE_NAME, (json.dumps(unreadable, indent=1) + "\n").encode())
    index = ShardIndex(
        url=options.out,
        name=source.name,
        split=source.split,
        resolution=options.resolution,
        channels=source.channels,
        shards=tuple(rows),
        made_by=_parameters(source, options)
        | numbers_left_out(unreadable)
        | ({"treated": treated} if treated else {})
        | label_counts(source, finished.values()),
    )
    seen = {number: known for number, record in finished.items() if (known := Seen.from_record(record))}
    if seen:
        write_stamps(folder, seen)
    index = with_statistics(index, finished.values())
    write_index(index)
    _clean_up(folder, records, source, options, identity)
    _report(index, unreadable)
    if repeated := copies(seen):
        print(f"Copies among these images (same bytes as an earlier one): {repeated}.", file=sys.stderr)
    report_treated(treated)
    report_left_out(source, index.made_by)
    return 0


def _begun_earlier(source: Source, options: PrepOptions, held: dict[str, Any] | None) -> Source | None:
    """The source as the version that began an output took it; None if that is no earlier one."""
    earlier = source.as_earlier()
    while earlier is not None and held != _identity(earlier, options):
        earlier = earlier.as_earlier()
    return earlier


def _report_earlier(url: str, earlier: Source, source: Source) -> None:
    """Print in what the images of an output that an earlier version began differ from those of this one."""
    if earlier.left_out != source.left_out:
        print(
            f"{url} was begun by an earlier version and keeps its choice of files: "
            f"{counted(len(earlier), 'image')}, where this version takes {len(source)}.",
            file=sys.stderr,
        )
    if earlier.lacks:
        print(
            f"{url} was begun without {earlier.lacks} and stays without; choose another --out to have them.",
            file=sys.stderr,
        )


def _parameters(source: Source, options: PrepOptions) -> dict[str, Any]:
    return {
        "source": source.digest,
        "images": len(source),
        "resolution": options.resolution,
        "shard_size": options.shard_size,
    } | (rule_parameters(pixel_rules(options)) | dict(source.parameters))


def _identity(source: Source, options: PrepOptions) -> dict[str, Any]:
    """Parameters that must equal those of an unfinished output for it to be resumed."""
    return {"name": source.name, "split": source.split, "channels": source.channels} | _parameters(source, options)


def check_options(source: Source, options: PrepOptions) -> None:
    """Raise `UserError` for options with which no output can be made from a source."""
    if not options.out:
        raise UserError("--out", got="nothing", expected="a path, file://, gs:// or s3:// folder", remedy="correct it")
    place_of(options.out, "--out")
    rules: list[tuple[str, object, str, bool]] = [
        ("--resolution", options.resolution, f"1 to {MAX_RESOLUTION}", 1 <= options.resolution <= MAX_RESOLUTION),
        ("--workers", options.workers, "at least 1", options.workers >= 1),
        (
            "--shard-size",
            options.shard_size,
            f"at least {max(1, -(-len(source) // MAX_SHARDS))}",
            options.shard_size >= max(1, -(-len(source) // MAX_SHARDS)),
        ),
        ("source", counted(len(source), "image"), f"1 to {MAX_SAMPLE_ID + 1}", 1 <= len(source) <= MAX_SAMPLE_ID + 1),
    ]
    for what, got, expected, holds in rules:
        if not holds:
            raise UserError(what, got=got, expected=expected, remedy="correct it")
    pixel_rules(options)


def _make_until_still(
    folder: Folder, source: Source, options: PrepOptions, finished: dict[int, dict[str, Any]]
) -> None:
    """Make the shards that are missing; then again those whose images changed meanwhile.

    Raises:
        UserError: images change in every round.
    """
    changes: list[Change] = []
    for _ in range(MAX_ROUNDS):
        missing = [number for number in range(-(-len(source) // options.shard_size)) if number not in finished]
        _make_all(source, options, missing, finished)
        if not (changes := forget_changed(folder, source, options.shard_size, finished)):
            return
    raise UserError(
        f"source of {source.name}",
        got=f"images that change while they are prepared (such as {printable(changes[0].image)})",
        expected="files that do not change",
        remedy="repeat the command when nothing writes to them",
    )


def _make_all(
    source: Source, options: PrepOptions, numbers: Sequence[int], finished: dict[int, dict[str, Any]]
) -> None:
    def count(number: int) -> int:
        return min(len(source), (number + 1) * options.shard_size) - number * options.shard_size

    def tasks() -> Iterator[_Task]:
        for number in numbers:
            start = number * options.shard_size
            yield _Task(
                number,
                shard_name(source.name, source.split, number),
                start,
                source.part(start, start + count(number)),
                source.channels,
                options.resolution,
                pixel_rules(options),
                options.out,
            )

    pool = _pool(min(options.workers, max(1, len(numbers))), apart=source.may_end_process)
    bad = Counter(numbers_left_out([entry for record in finished.values() for entry in record["unreadable"]]))
    done = sum(count(number) for number in finished)
    try:
        with progress(f"{source.name} {source.split}", len(source), done, "images") as advance:
            waiting: set[Future[tuple[int, dict[str, Any]]]] = set()
            todo = tasks()
            while True:
                # Submit only a few tasks at a time, because each holds the names of its images.
                while len(waiting) < 2 * options.workers and (task := next(todo, None)) is not None:
                    waiting.add(pool.submit(_make_shard, task))
                if not waiting:
                    return
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    number, record = future.result()
                    finished[number] = record
                    bad.update(numbers_left_out(record["unreadable"]))
                    advance(count(number), in_words(bad))
    except BrokenProcessPool as error:
        raise UserError(
            "worker process",
            got="an unexpected end",
            expected="a finished shard",
            remedy="repeat the command to resume, with fewer --workers if memory is short"
            + ("; if it fails again, the database is damaged: download it again" if source.may_end_process else ""),
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int, *, apart: bool) -> Executor:
    if workers == 1 and not apart:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    """Make this process end when its parent ends, even if killed, and ignore Ctrl-C, which the parent handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for_end([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_shard(task: _Task) -> tuple[int, dict[str, Any]]:
    samples: list[Sample] = []
    unreadable: list[dict[str, Any]] = []
    contents, stamps = bytearray(), bytearray()
    treated: Counter[str] = Counter()
    counts = LabelCounts()
    sums = PixelSums.none(task.channels, task.resolution)
    for position, item in enumerate(task.part.items(), start=task.start):
        contents += item.content or b""
        stamps += item.stamp or b""
        try:
            pixels, kinds = square_pixels(item.load(), task.rules, task.channels, task.resolution)
        except MemoryError as error:
            raise UserError(
                f"image {printable(item.source)}",
                got="too little memory to decode it",
                expected="memory for one image in each worker",
                remedy="resume with fewer --workers, or remove the image if it fails again",
            ) from error
        except (OSError, ValueError) as error:
            name = "" if isinstance(error, PictureError) else f"{type(error).__name__}: "
            reason = re.sub(r" at 0x[0-9a-f]+", "", f"{name}{error}")
            entry: dict[str, Any] = {"position": position, "source": item.source, "reason": reason}
            unreadable.append(entry | ({IS_SMALL: True} if isinstance(error, TooSmallError) else {}))
            continue
        samples.append(Sample(position, encode_png(pixels), facts_of(item)))
        sums += PixelSums.of(pixels[None])
        counts.add(item)
        treated.update(kinds)
    folder, row = Folder(task.out), None
    if samples:
        data, packed = pack_shard(task.name, samples)
        folder.write(task.name, data)
        row = {"name": packed.name, "size": packed.size, "sha256": packed.sha256, "offsets": packed.offsets.tolist()}
    record: dict[str, Any] = {"row": row, "unreadable": unreadable, "treated": dict(treated)} | counts.as_json()
    if samples:
        record["sums"] = sums.as_json()
    if contents:
        record["seen"] = Seen(bytes(contents), bytes(stamps)).as_json()
    Folder(joined(task.out, PROGRESS_FOLDER)).write(f"{task.number:05d}.json", json.dumps(record).encode())
    return task.number, record


def _clean_up(folder: Folder, records: Folder, source: Source, options: PrepOptions, identity: dict[str, Any]) -> None:
    """Remove the records of these shards, and orphaned parts of their files; nothing else."""
    numbers = range(-(-len(source) // options.shard_size))
    # The parameters go last: without them, the other records could not be attributed to this output.
    if Records(folder.url).are_of(identity, PARAMETERS_NAME):
        records.remove_written([*(f"{number:05d}.json" for number in numbers), PARAMETERS_NAME])
    records.remove_if_empty()
    shards = (shard_name(source.name, source.split, number) for number in numbers)
    folder.remove_parts([*shards, UNREADABLE_NAME, STAMPS_NAME, INDEX_NAME])


def _report(index: ShardIndex, unreadable: Sequence[dict[str, Any]]) -> None:
    size = sum(shard.size for shard in index.shards)
    print(
        f"{in_full(index.url)}: {counted(index.num_samples, 'image')} of {index.resolution}x{index.resolution} in "
        f"{counted(len(index.shards), 'shard')}, {size / 2**20:.1f} MiB, {describe(index)}, "
        f"fingerprint {index.fingerprint[:16]}.",
        file=sys.stderr,
    )
    report_entries(unreadable)
