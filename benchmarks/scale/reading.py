"""Costs of reading: the start of a worker, the order of samples, shards of a node, damage, restarts and audits."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import drl_dist.data.stream
from benchmarks.scale.growth import Cost
from benchmarks.scale.storage import BUCKET, Bucket, data_set, index_of_size
from drl_dist.common.batch import Batch
from drl_dist.config.tree import LoaderConfig
from drl_dist.data.audit import audit, audited, read_audit_log
from drl_dist.data.cache import OpenShard, ShardCache
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import INDEX_NAME, ShardIndex, ShardRow, open_index
from drl_dist.data.order import SampleOrder, share
from drl_dist.data.stream import ShardStream

PER_NODE, PER_WORKER = 8, 8
"""Workers of a node, and images of a worker's step."""
STEPS, AUDITED_STEPS, LATE = 16, 2, 1_000_000
"""Steps that nodes make, steps that are audited, and the step after which a run continues."""
CACHE_REPEATS = 3
SEED = 1
_SAMPLED = 8
"""Workers that are looked at where all do the same."""
_LOAD = """
import json, sys, time
from drl_dist.data.index import open_index
def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024
before, began = status("VmRSS"), time.process_time()
index = open_index(sys.argv[1], check_shards=False)
fingerprint = index.fingerprint
seconds = time.process_time() - began
print(json.dumps({"seconds": seconds, "bytes": status("VmRSS") - before, "peak": status("VmHWM") - before}))
"""

DATA = f"{BUCKET}/data"


def new_costs() -> dict[str, Cost]:
    """What `measure_reading` fills."""
    return {
        "start_seconds": Cost("start of a worker: index and stream, CPU", "s"),
        "start_bytes": Cost("memory: index and stream", "B"),
        "start_requests": Cost("storage requests at the start", ""),
        "order_seconds": Cost("order of samples, CPU a step", "s"),
        "step_requests": Cost(f"storage requests in {STEPS} steps", ""),
        "shards_fetched": Cost(f"shards fetched by nodes in {STEPS} steps", ""),
        "shards_opened": Cost(f"shards opened by workers in {STEPS} steps", ""),
        "files_open": Cost("shards held open at one time", ""),
        "missing_requests": Cost("requests for one missing shard", ""),
        "restart_seconds": Cost(f"stream from step {LATE:,}, CPU", "s"),
        "cache_seconds": Cost("fetching into one node's cache, CPU", "s", "shard"),
        "audit_seconds": Cost(f"audit of {AUDITED_STEPS} steps, CPU", "s"),
    }


@dataclass(frozen=True)
class Fleet:
    """Simulated workers, each with its share of one batch.

    Args:
        world_size: how many.
        index: of the data.
    """

    world_size: int
    index: ShardIndex

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return PER_WORKER * self.world_size

    @property
    def per_node(self) -> int:
        """Workers of a node."""
        return min(PER_NODE, self.world_size)

    @property
    def nodes(self) -> int:
        """Nodes of the fleet."""
        return -(-self.world_size // PER_NODE)

    def some(self) -> list[int]:
        """Ranks from all over the fleet."""
        return sorted({int(rank) for rank in np.linspace(0, self.world_size - 1, min(_SAMPLED, self.world_size))})

    def stream(self, rank: int, step: int = 0, **loader: Any) -> ShardStream:
        """The stream of a rank."""
        return ShardStream(
            self.index,
            seed=SEED,
            batch_size=self.batch_size,
            rank=rank,
            world_size=self.world_size,
            start_position=step * self.batch_size,
            loader=LoaderConfig(**{"prefetch_batches": 1, "decoded_mib": 1.0, **loader}),
        )

    def order(self) -> SampleOrder:
        """The order of one worker."""
        return SampleOrder([row.num_samples for row in self.index.shards], SEED, LoaderConfig().window_shards)

    def positions(self, rank: int, step: int) -> np.ndarray:
        """Of a rank's share of a step."""
        return step * self.batch_size + share(self.batch_size, rank, self.world_size)


@dataclass(frozen=True)
class Sizes:
    """Of the data set.

    Args:
        shards: how many.
        samples: images in each.
    """

    shards: int
    samples: int


def measure_reading(
    bucket: Bucket, workers: list[int], sizes: Sizes, tell: Callable[[str], None]
) -> tuple[dict[str, Cost], dict[str, float]]:
    """All costs of reading, and what was measured of the index alone."""
    costs = new_costs()
    with tempfile.TemporaryDirectory(prefix="drl-scale-") as temporary:
        loaded = _load_index(Path(temporary), sizes)
    tell(f"index of {sizes.shards * sizes.samples:,} images: {loaded}")
    index = data_set(bucket, DATA, sizes.shards, sizes.samples)
    bucket.taken()
    index = open_index(DATA, check_shards=False)
    at_start = bucket.taken()
    for number in workers:
        fleet = Fleet(number, index)
        for key, amount in {
            **_start(fleet, loaded, at_start),
            "order_seconds": _order_seconds(fleet),
            **_node_steps(fleet, bucket),
            "missing_requests": _missing(fleet, bucket),
            "restart_seconds": _restart_seconds(fleet),
            "audit_seconds": _audit_seconds(fleet),
        }.items():
            costs[key].amounts[number] = amount
        shards = max(1, number // 4)
        costs["cache_seconds"].amounts[shards] = _cache_seconds(bucket, shards)
        tell(f"{number} workers read")
    return costs, loaded


def _load_index(folder: Path, sizes: Sizes) -> dict[str, float]:
    """What opening an index costs one worker, in a process of its own."""
    index_of_size(str(folder), sizes.shards, sizes.samples)
    command = [sys.executable, "-c", _LOAD, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    found: dict[str, float] = json.loads(done.stdout)
    return {"file_bytes": float(Folder(str(folder)).sizes()[INDEX_NAME]), **found}


def _start(fleet: Fleet, loaded: dict[str, float], requests: int) -> dict[str, float]:
    """Every worker opens the index, which takes each as long, and makes its stream."""
    gc.collect()
    ranks, streams = fleet.some(), list[ShardStream]()
    began = time.process_time()
    for rank in ranks:
        streams.append(fleet.stream(rank))
        streams[-1].order.locate(fleet.positions(rank, 0))
    seconds = (time.process_time() - began) / len(ranks)
    for stream in streams:
        stream.close()
    streams.clear()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for rank in ranks:
        streams.append(fleet.stream(rank))
        for step in range(4):
            streams[-1].order.locate(fleet.positions(rank, step))
    held = (tracemalloc.get_traced_memory()[0] - before) / len(ranks)
    tracemalloc.stop()
    for stream in streams:
        stream.close()
    return {
        "start_seconds": fleet.world_size * (loaded["seconds"] + seconds),
        "start_bytes": fleet.world_size * (loaded["bytes"] + held),
        "start_requests": float(fleet.world_size * requests),
    }


def _order_seconds(fleet: Fleet) -> float:
    ranks, steps = fleet.some(), STEPS
    orders = {rank: fleet.order() for rank in ranks}
    for rank, order in orders.items():
        order.locate(fleet.positions(rank, 0)[:1])
    began = time.process_time()
    for rank, order in orders.items():
        for step in range(steps):
            order.locate(fleet.positions(rank, step))
    return fleet.world_size * (time.process_time() - began) / (len(ranks) * steps)


class Opened:
    """How often workers have opened shards, and how many are open."""

    def __init__(self) -> None:
        self.total = self.now = self.most = 0


@contextmanager
def counting_opens() -> Iterator[Opened]:
    """Count what streams open."""
    opened = Opened()

    class Counted(OpenShard):
        def close(self) -> None:
            opened.now -= self._descriptor is not None
            super().close()

    class CountedCache(ShardCache):
        def open(self, *arguments: Any, **options: Any) -> OpenShard:
            shard = super().open(*arguments, **options)
            opened.total += 1
            opened.now += 1
            opened.most = max(opened.most, opened.now)
            assert shard._descriptor is not None
            return Counted(shard.row, shard._descriptor)

    with patch.object(drl_dist.data.stream, "ShardCache", CountedCache):
        yield opened


def _node_steps(fleet: Fleet, bucket: Bucket) -> dict[str, float]:
    """The workers of one node in the middle, with the cache that they share, make some steps."""
    first = fleet.nodes // 2 * PER_NODE if fleet.world_size >= PER_NODE else 0
    first = min(first, fleet.world_size - fleet.per_node)
    with counting_opens() as opened, ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="drl-scale-cache-"))
        ranks = range(first, first + fleet.per_node)
        streams = [stack.enter_context(fleet.stream(rank, cache_dir=folder)) for rank in ranks]
        batches = [iter(stream) for stream in streams]
        bucket.taken()
        for _ in range(STEPS):
            for source in batches:
                next(source)
        for stream in streams:
            stream.close()
        fetched = sum(path.suffix == ".tar" for path in Path(folder).iterdir())
        requests = bucket.taken()
    nodes = fleet.world_size / fleet.per_node
    return {
        "step_requests": nodes * requests,
        "shards_fetched": nodes * fetched,
        "shards_opened": nodes * opened.total,
        "files_open": nodes * opened.most,
    }


def _missing(fleet: Fleet, bucket: Bucket) -> float:
    """How often the first node asks for a shard of the first window that is gone.

    Every node may meet one: those of all are as many times as much.
    """
    name = fleet.index.shards[int(fleet.order().window_shards(0)[0])].name
    files, path = bucket.folders[DATA.removeprefix("gs://")], f"{DATA.removeprefix('gs://')}/{name}"
    content = files.pop(name)
    bucket.read.clear()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="drl-scale-cache-"))
        for rank in range(fleet.per_node):
            stream = stack.enter_context(fleet.stream(rank, cache_dir=folder, on_damage="substitute"))
            next(iter(stream))
    files[name] = content
    return float(fleet.nodes * bucket.read[path])


def _restart_seconds(fleet: Fleet) -> float:
    """From the step to its first places; before that comes what a start takes."""
    ranks = fleet.some()
    began = time.process_time()
    for rank in ranks:
        with fleet.stream(rank, LATE) as stream:
            stream.order.locate(fleet.positions(rank, LATE))
    return fleet.world_size * (time.process_time() - began) / len(ranks)


def _cache_seconds(bucket: Bucket, shards: int) -> float:
    """One process fetches so many small shards, none of which has to go; the least of a few times, for most of it is
    the system's, in which new files take several times as long at one moment as at another."""
    url = f"{BUCKET}/small"
    rows = data_set(bucket, url, shards, 1).shards
    return min(_fetch_seconds(url, rows) for _ in range(CACHE_REPEATS))


def _fetch_seconds(url: str, rows: Sequence[ShardRow]) -> float:
    with tempfile.TemporaryDirectory(prefix="drl-scale-cache-") as folder:
        cache = ShardCache(url, cache_dir=folder)
        began = time.process_time()
        for row in rows:
            cache.open(row).close()
        return time.process_time() - began


def _batches(fleet: Fleet, rank: int) -> Iterator[Batch]:
    pixels = torch.zeros(PER_WORKER, 1, 8, 8, dtype=torch.uint8)
    for step in range(AUDITED_STEPS):
        yield Batch(pixels, torch.from_numpy(fleet.positions(rank, step)), 0)


def _audit_seconds(fleet: Fleet) -> float:
    """Reading and checking the audit logs of all workers."""
    order = fleet.order()
    with tempfile.TemporaryDirectory(prefix="drl-scale-audit-") as temporary:
        folder, size = Path(temporary), fleet.batch_size
        for rank in range(fleet.world_size):
            log = audited(_batches(fleet, rank), folder, order, batch_size=size, rank=rank, world_size=fleet.world_size)
            for _ in log:
                pass
        began = time.process_time()
        found = audit(
            read_audit_log(folder), num_steps=AUDITED_STEPS, batch_size=size, num_samples=fleet.index.num_samples
        )
        seconds = time.process_time() - began
    assert (found.num_lost, found.num_twice) == (0, 0), found
    return seconds
