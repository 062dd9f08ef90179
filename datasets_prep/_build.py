"""From a source to shards and their index: in parallel, resumable, and byte for byte the same every time.

Shard k holds the source's images k*S to (k+1)*S - 1, so that nothing depends on timing; an unreadable image leaves
a gap in the sample ids. Each finished shard leaves a record in ``_progress/``, which a later start builds on; the index
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
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for_end
from typing import Any

import numpy as np

from datasets_prep._pixels import pixel_rules, rule_parameters, square_pixels, sum_treated, tell_treated, tell_untreated
from datasets_prep._source import Part, Source
from drl_dist.config import differences
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.data.index import INDEX_NAME, MAX_RESOLUTION, MAX_SHARDS, ShardIndex, open_index, write_index
from drl_dist.data.pictures import PictureError, PixelRules
from drl_dist.data.shards import MAX_SAMPLE_ID, Sample, ShardRow, encode_png, pack_shard, shard_name
from drl_dist.errors import UserError
from drl_dist.progress import progress

UNREADABLE_NAME = "unreadable.json"
PROGRESS_FOLDER = "_progress"
PARAMETERS_NAME = "parameters.json"
# What files, zipfile and zlib raise for damaged data, and `read_picture` for pictures.
UNREADABLE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True, kw_only=True)
class PrepOptions:
    """What every data set's command understands."""

    out: str = ""
    """Folder to write the shards to: a path, file://, gs:// or s3://."""
    resolution: int = 64
    """Height and width of the images, in pixels."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that make shards at the same time."""
    shard_size: int = 2048
    """Images per shard."""


@dataclass(frozen=True, kw_only=True)
class PictureOptions(PrepOptions):
    """What the command of a data set of encoded pictures understands besides."""

    background: str = "white"
    """Colour below transparent pixels: a name, #rrggbb or r,g,b."""
    value_range: tuple[float, float] | None = None
    """The values of black and of white in grey pictures of more than 8 bits, e.g. 0 4095; by default what their files
    say, else all of 16 bits."""


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
    """Make the shards of a source; the exit status of its command.

    Raises:
        UserError: the options cannot be used, the output holds something else, or nothing could be read.
    """
    _check_options(source, options)
    rules = pixel_rules(options)
    check_reachable(options.out)
    folder, records = Folder(options.out), Folder(f"{options.out.rstrip('/')}/{PROGRESS_FOLDER}")
    parameters = {
        "source": source.digest,
        "images": len(source),
        "resolution": options.resolution,
        "shard_size": options.shard_size,
    } | rule_parameters(rules)
    identity = {"name": source.name, "split": source.split, "channels": source.channels} | parameters
    if _already_prepared(folder, identity):
        _clean_up(folder, records)
        return 0
    finished = _resume(folder, records, identity)
    if isinstance(options, PictureOptions):
        tell_untreated(finished.values())
    tasks = [number for number in range(-(-len(source) // options.shard_size)) if number not in finished]
    _make_all(source, options, tasks, finished)

    rows = [_row(finished[number]["row"]) for number in sorted(finished) if finished[number]["row"]]
    unreadable = [entry for number in sorted(finished) for entry in finished[number]["unreadable"]]
    treated = sum_treated(record.get("treated", {}) for record in finished.values())
    if not rows:
        raise UserError(
            "source",
            got=f"{len(unreadable)} images, none of them readable (first: {unreadable[0]['reason']})",
            expected="readable images",
            remedy="check the download; nothing was prepared",
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
        made_by=parameters | {"unreadable": len(unreadable)} | ({"treated": treated} if treated else {}),
    )
    write_index(index)
    _clean_up(folder, records)
    _report(index, unreadable)
    tell_treated(treated)
    return 0


def _check_options(source: Source, options: PrepOptions) -> None:
    rules: list[tuple[str, object, str, bool]] = [
        ("--out", options.out or "nothing", "a path, file://, gs:// or s3:// folder", bool(options.out)),
        ("--resolution", options.resolution, f"1 to {MAX_RESOLUTION}", 1 <= options.resolution <= MAX_RESOLUTION),
        ("--workers", options.workers, "at least 1", options.workers >= 1),
        (
            "--shard-size",
            options.shard_size,
            f"at least {max(1, -(-len(source) // MAX_SHARDS))}",
            options.shard_size >= max(1, -(-len(source) // MAX_SHARDS)),
        ),
        ("source", f"{len(source)} images", f"1 to {MAX_SAMPLE_ID + 1}", 1 <= len(source) <= MAX_SAMPLE_ID + 1),
    ]
    for what, got, expected, holds in rules:
        if not holds:
            raise UserError(what, got=got, expected=expected, remedy="correct it")


def _already_prepared(folder: Folder, identity: dict[str, Any]) -> bool:
    if INDEX_NAME not in folder.sizes():
        return False
    index = open_index(folder.url)
    made = {"name": index.name, "split": index.split, "channels": index.channels} | dict(index.made_by)
    made.pop("unreadable", None)
    treated = made.pop("treated", {})
    _refuse_other(folder, made, identity)
    print(f"{folder.url} already holds these {index.num_samples} images; nothing to do.", file=sys.stderr)
    tell_treated(treated)
    return True


def _resume(folder: Folder, records: Folder, identity: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The records of the shards that an earlier start finished, by number."""
    names = records.sizes()
    if PARAMETERS_NAME not in names:
        records.write(PARAMETERS_NAME, json.dumps(identity, sort_keys=True).encode())
        return {}
    _refuse_other(folder, json.loads(records.read(PARAMETERS_NAME)), identity)
    sizes = folder.sizes()
    numbers = sorted(int(name[:-5]) for name in names if re.fullmatch(r"\d{5}\.json", name))
    with ThreadPoolExecutor(8) as threads:
        found = dict(
            zip(
                numbers,
                threads.map(lambda number: json.loads(records.read(f"{number:05d}.json")), numbers),
                strict=True,
            )
        )
    kept = {
        number: record
        for number, record in found.items()
        if not record["row"] or sizes.get(record["row"]["name"]) == record["row"]["size"]
    }
    print(f"going on with {folder.url}: {len(kept)} shards are finished.", file=sys.stderr)
    return kept


def _refuse_other(folder: Folder, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if other := differences(found, wanted):
        raise UserError(
            f"output {folder.url}",
            got="data prepared with other options or from another source (" + ", ".join(other) + ")",
            expected="an empty folder, or one prepared with these options",
            remedy="choose another --out, or remove this folder",
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

    pool = _pool(min(options.workers, max(1, len(numbers))))
    bad = sum(len(record["unreadable"]) for record in finished.values())
    done = sum(count(number) for number in finished)
    try:
        with progress(f"{source.name} {source.split}", len(source), done, "images") as advance:
            waiting: set[Future[tuple[int, dict[str, Any]]]] = set()
            todo = tasks()
            while True:
                # A few tasks at a time: each carries the names of its images.
                while len(waiting) < 2 * options.workers and (task := next(todo, None)) is not None:
                    waiting.add(pool.submit(_make_shard, task))
                if not waiting:
                    return
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    number, record = future.result()
                    finished[number] = record
                    bad += len(record["unreadable"])
                    advance(count(number), f"{bad} unreadable" if bad else "")
    except BrokenProcessPool as error:
        raise UserError(
            "worker process",
            got="its sudden end",
            expected="a finished shard",
            remedy="run the command again to go on, with fewer --workers if memory is short",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int) -> Executor:
    if workers == 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    """End this process when its parent is gone, even if that was killed; leave Ctrl-C to the parent."""
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
    treated: Counter[str] = Counter()
    for position, item in enumerate(task.part.items(), start=task.start):
        try:
            pixels, kinds = square_pixels(item.load(), task.rules, task.channels, task.resolution)
        except MemoryError as error:
            raise UserError(
                f"image {item.source}",
                got="too little memory to decode it",
                expected="memory for one image in each worker",
                remedy="go on with fewer --workers, or remove the image if it ends here again",
            ) from error
        except UNREADABLE_ERRORS as error:
            name = "" if isinstance(error, PictureError) else f"{type(error).__name__}: "
            reason = re.sub(r" at 0x[0-9a-f]+", "", f"{name}{error}")
            unreadable.append({"position": position, "source": item.source, "reason": reason})
            continue
        facts: dict[str, Any] = {"source": item.source} | ({} if item.label is None else {"label": item.label})
        samples.append(Sample(position, encode_png(pixels), facts))
        treated.update(kinds)
    folder, row = Folder(task.out), None
    if samples:
        data, packed = pack_shard(task.name, samples)
        folder.write(task.name, data)
        row = {"name": packed.name, "size": packed.size, "sha256": packed.sha256, "offsets": packed.offsets.tolist()}
    record = {"row": row, "unreadable": unreadable, "treated": dict(treated)}
    Folder(f"{task.out.rstrip('/')}/{PROGRESS_FOLDER}").write(f"{task.number:05d}.json", json.dumps(record).encode())
    return task.number, record


def _row(row: dict[str, Any]) -> ShardRow:
    return ShardRow(row["name"], row["size"], row["sha256"], np.array(row["offsets"], dtype=np.int64))


def _clean_up(folder: Folder, records: Folder) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(records.remove, records.sizes()))
        # Left by a start that was killed while it wrote.
        list(threads.map(folder.remove, [name for name in folder.sizes() if re.fullmatch(r"\..*\.part", name)]))
    if records.local is not None and records.local.is_dir():
        records.local.rmdir()


def _report(index: ShardIndex, unreadable: Sequence[dict[str, Any]]) -> None:
    size = sum(shard.size for shard in index.shards)
    print(
        f"{index.url}: {index.num_samples} images of {index.resolution}x{index.resolution} in {len(index.shards)} "
        f"shards, {size / 2**20:.1f} MiB, fingerprint {index.fingerprint[:16]}.",
        file=sys.stderr,
    )
    if unreadable:
        print(
            f"{len(unreadable)} images could not be read and are left out; {UNREADABLE_NAME} lists them:",
            file=sys.stderr,
        )
        for entry in unreadable[:10]:
            print(f"  {entry['source']}: {entry['reason']}", file=sys.stderr)
