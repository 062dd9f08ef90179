"""Costs of jobs: the driver of sampling, checkpoints in storage, and the tracking of a run."""

from __future__ import annotations

import gc
import json
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

import drl_dist.jobs.common.actor_pool
from benchmarks.scale.growth import Cost
from benchmarks.scale.storage import BUCKET, Bucket
from drl_dist.checkpoints.format import CHECKSUMS
from drl_dist.checkpoints.retention import SNAPSHOT, remove_orphaned
from drl_dist.checkpoints.storage import FILES, StoredCheckpoint, checkpoint_name
from drl_dist.checkpoints.verify import newest_to_resume
from drl_dist.common.progress import UnderWay
from drl_dist.config.presets import preset
from drl_dist.data.shards import ShardRow, shard_name
from drl_dist.jobs.common.actor_pool import WorkerPool
from drl_dist.jobs.sample.output import SampleOutput
from drl_dist.jobs.sample.task import SHA256_BYTES, SPLIT, SampleRequest, TaskRecord

UNIT_IMAGES = 16
"""Images of an output unit, one shard."""
UNITS_PER_WORKER = 4
TRACKED_SECONDS = 6.0
"""In which calls to MLflow are counted."""
_KEEP = 3


def new_costs() -> dict[str, Cost]:
    """What `measure_jobs` fills."""
    return {
        "poll_handles": Cost(f"sampling: handles that the driver polls for {UNITS_PER_WORKER} units a worker", ""),
        "poll_seconds": Cost(f"sampling: driver's CPU for {UNITS_PER_WORKER} units a worker", "s"),
        "job_seconds": Cost("sampling: start, records, manifest and index, CPU", "s", "unit"),
        "job_bytes": Cost("sampling: records in the driver's memory", "B", "unit"),
        "resume_peak": Cost("sampling: peak of memory as a job is taken up again", "B", "unit"),
        "job_requests": Cost("sampling: storage requests of the driver", "", "unit"),
        "resume_requests": Cost("sampling: storage requests as a job is taken up again", "", "unit"),
        "manifest_bytes": Cost("sampling: manifest", "B", "unit"),
        "retention_requests": Cost(f"removal down to {_KEEP} checkpoints that Ray lists: requests", "", "checkpoint"),
        "newest_requests": Cost("finding the newest checkpoint: requests", "", "checkpoint"),
        "registry_versions": Cost("MLflow: versions read while checkpoints are registered", "", "checkpoint"),
        "registry_calls": Cost("MLflow: calls while checkpoints are registered", "", "checkpoint"),
    }


def measure_jobs(
    bucket: Bucket, workers: Sequence[int], most_units: int, tell: Callable[[str], None]
) -> dict[str, Cost]:
    """All costs of jobs."""
    costs = new_costs()
    for number in workers:
        units = max(4, round(most_units * number / max(workers)))
        job = _sampling(bucket, units)
        for key, amount in job.items():
            costs[key].amounts[units] = amount
        for key, amount in {**polling(number), **_checkpoints(bucket, number), **registry(number)}.items():
            costs[key].amounts[number] = amount
        tell(f"{number} workers with {units} units")
    return costs


class SimulatedRay:
    """In the place of Ray in the pool of actors: every actor has news whenever it is asked.

    Args:
        images: of each task.
    """

    def __init__(self, images: int) -> None:
        self.handles = self.waits = 0
        self._images = images

    def put(self, value: object) -> object:
        """A reference, which is the value."""
        return value

    def remote(self, _: type) -> Any:
        """An actor class."""
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: self._actor()))

    def kill(self, _: object) -> None:
        """Nothing is there to be ended."""

    def wait(self, handles: Sequence[Any], num_returns: int = 1, timeout: float | None = None) -> tuple[Any, Any]:
        """The first few, which are ready."""
        self.waits += 1
        self.handles += len(handles)
        return list(handles[:num_returns]), list(handles[num_returns:])

    def get(self, reference: object) -> Any:
        """What a reference stands for."""
        return reference

    def _actor(self) -> Any:
        def start(task: int) -> Iterator[object]:
            yield UnderWay(1.0, "noise level 3 of 6")
            yield self._images
            yield f"record of {task}"

        make = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))
        return SimpleNamespace(ready=SimpleNamespace(remote=object), make=make)


def polling(workers: int) -> dict[str, float]:
    """What the driver does while workers make units."""
    simulated, told = SimulatedRay(UNIT_IMAGES), Counter[str]()

    def advance(items: int, note: str = "", **_: object) -> None:
        told["items"] += items

    module = drl_dist.jobs.common.actor_pool
    with patch.object(module, "ray", simulated), patch.object(module, "room_wanted", lambda *_, **__: "room"):
        pool = WorkerPool[Any](workers, cpus=1, gpus=0, new_runner=lambda: None, arguments=())  # type: ignore[arg-type]
        # As timeit has it: the thousands of simulated actors lie in this process, and are no part of a driver.
        gc.collect()
        gc.disable()
        began = time.process_time()
        made = [task for task, _ in pool.run(range(UNITS_PER_WORKER * workers), advance)]
        seconds = time.process_time() - began
        gc.enable()
    assert sorted(made) == list(range(UNITS_PER_WORKER * workers)) and told["items"] == UNIT_IMAGES * len(made)
    return {"poll_handles": float(simulated.handles), "poll_seconds": seconds}


def _sampling(bucket: Bucket, units: int) -> dict[str, float]:
    """The driver of a sampling job from its start to its index, begun, taken up again and finished."""
    url = f"{BUCKET}/samples{units}"
    request, experiment = sample_request(units), preset("digits")
    bucket.taken()
    began = time.process_time()
    output = SampleOutput(url, experiment, request)
    assert not output.is_complete()
    records = output.finished()
    output.begin(records)
    seconds = time.process_time() - began
    made = [record_of(request, unit) for unit in range(units)]
    began = time.process_time()
    with output.kept_behind() as keep:
        for unit, record in enumerate(made):
            bucket.put(f"{url}/{record.row.name}", record.row.size)
            keep(unit, record)
            records[unit] = record
    seconds += time.process_time() - began
    requests = bucket.taken()
    del made, records, output
    # A new driver finds all of them.
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    output = SampleOutput(url, experiment, request)
    assert not output.is_complete()
    records = output.finished()
    output.begin(records)
    held, peak = (size - before for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert len(records) == units
    resumed = bucket.taken()
    began = time.process_time()
    output.check_shards(records)
    output.exchange(records)
    output.write_manifest(records, {"devices": ["cpu"]})
    manifest = bucket.folders[url.removeprefix("gs://")]["manifest.parquet"][0]
    output.finish(output.index(records))
    seconds += time.process_time() - began
    requests += bucket.taken()
    del bucket.folders[url.removeprefix("gs://")]
    return {
        "job_seconds": seconds,
        "job_bytes": float(held),
        "resume_peak": float(peak),
        "job_requests": float(requests),
        "resume_requests": float(resumed),
        "manifest_bytes": float(manifest),
    }


def sample_request(units: int) -> SampleRequest:
    """Of a job of so many units."""
    return SampleRequest(
        preset="digits",
        ema_sha256="0" * 64,
        config_sha256="0" * 64,
        num_images=units * UNIT_IMAGES,
        seed=0,
        noise_scale=1.0,
        shard_size=UNIT_IMAGES,
        batch_size=UNIT_IMAGES,
        device="cpu",
        threads=1,
    )


def record_of(request: SampleRequest, unit: int) -> TaskRecord:
    """What a worker would say of a unit that it has made."""
    images, random = len(request.images_of(unit)), np.random.Generator(np.random.PCG64(unit))
    offsets = 2048 * np.arange(images, dtype=np.int64)
    row = ShardRow(shard_name(request.preset, SPLIT, unit), 2048 * images + 1024, random.bytes(32).hex(), offsets)
    sizes = random.integers(80, 500, images).astype(np.int32)
    return TaskRecord(row, sizes, random.bytes(SHA256_BYTES * images), "cpu", 1.0)


def _checkpoints(bucket: Bucket, number: int) -> dict[str, float]:
    """A run with so many complete checkpoints, all of which Ray lists."""
    run = f"{BUCKET}/run{number}"
    sizes = {name: 4096 for name in FILES if name != CHECKSUMS}
    checksums = json.dumps({name: {"bytes": size, "sha256": "0" * 64} for name, size in sizes.items()}).encode()
    names = [checkpoint_name(1000 * (at + 1)) for at in range(number)]
    for name in names:
        for file, size in sizes.items():
            bucket.put(f"{run}/{name}/{file}", size)
        bucket.put(f"{run}/{name}/{CHECKSUMS}", checksums)
    listed = {"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]}
    bucket.put(f"{run}/{SNAPSHOT}", json.dumps(listed).encode())
    bucket.taken()
    newest = newest_to_resume(run, 10**9)
    assert newest == StoredCheckpoint(f"{run}/{names[-1]}", 1000 * number)
    found = bucket.taken()
    assert remove_orphaned(run, _KEEP, newest) == []
    removed = bucket.taken()
    for folder in [one for one in bucket.folders if one.startswith(run.removeprefix("gs://"))]:
        del bucket.folders[folder]
    return {"newest_requests": float(found), "retention_requests": float(removed)}


class RecordingClient:
    """In the place of MLflow's client: keeps versions of models, and counts calls and the versions that it gives."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.given = 0
        self._versions: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def called(*_: object, **__: object) -> None:
            self.calls[name] += 1

        return called

    def create_model_version(self, name: str, source: str, run_id: str, tags: dict[str, str], **_: object) -> Any:
        """A new one."""
        self.calls["create_model_version"] += 1
        version = SimpleNamespace(version=len(self._versions) + 1, tags=tags, run_id=run_id, name=name)
        self._versions.append(version)
        return version

    def search_model_versions(
        self,
        filter_string: str,
        max_results: int = 10_000,
        order_by: Sequence[str] | None = None,
        page_token: str | None = None,
    ) -> Any:
        """Those of the one model and the one run that there are; a token is where the next page begins."""
        self.calls["search_model_versions"] += 1
        found = self._versions[::-1] if order_by == ["version_number DESC"] else self._versions
        if "tags.`step`" in filter_string or "tags.step" in filter_string:
            step = filter_string.rpartition("step")[2].partition("'")[2].partition("'")[0]
            found = [version for version in found if version.tags["step"] == step]
        start = int(page_token or 0)
        page = _Page(found[start : start + max_results])
        page.token = str(start + max_results) if start + max_results < len(found) else None
        self.given += len(page)
        return page


class _Page(list[Any]):
    token: str | None = None


def registry(number: int) -> dict[str, float]:
    """So many checkpoints become versions of a model, one after another."""
    from drl_dist.tracking.registry import EMA, register_checkpoint

    client: Any = RecordingClient()
    with tempfile.TemporaryDirectory(prefix="drl-scale-") as temporary:
        folder = Path(temporary)
        (folder / CHECKSUMS).write_text(json.dumps({EMA: {"sha256": "0" * 64}}))
        for at in range(number):
            register_checkpoint(client, "digits", "run", 1000 * (at + 1), folder, {"run_name": "one"})
    return {"registry_versions": float(max(1, client.given)), "registry_calls": float(client.calls.total())}


def tracking_calls() -> dict[str, float]:
    """Calls to MLflow per second of a run whose first rank logs twenty steps in each, with the real tracker."""
    from drl_dist.tracking import sender
    from drl_dist.tracking.tracker import Tracker

    client = RecordingClient()
    with (
        tempfile.TemporaryDirectory(prefix="drl-scale-") as temporary,
        patch.object(sender, "client_of", lambda _: client),
    ):
        tracker = Tracker("http://127.0.0.1:9", "run", Path(temporary))
        began, step = time.monotonic(), 0
        while time.monotonic() - began < TRACKED_SECONDS:
            step += 1
            tracker.log_metrics(step, {f"metric{number}": 1.0 for number in range(30)})
            time.sleep(0.05)
        tracker.flush(30)
        taken = time.monotonic() - began
        tracker.close()
    return {
        "calls_per_second": client.calls.total() / taken,
        "steps_per_second": step / taken,
        "numbers_per_step": 30.0,
    }
