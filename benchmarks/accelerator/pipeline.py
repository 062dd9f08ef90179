"""Whether shards on a local disk keep up with the training step: the share of its time that it waits for images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.accelerator.cases import tiny
from benchmarks.accelerator.work import (
    Skipped,
    Work,
    arithmetic,
    at_largest_batch,
    engine,
    free_memory,
    precisions,
    trying,
)
from drl_dist.config.presets import preset
from drl_dist.config.tree import Experiment, LoaderConfig
from drl_dist.training.cost import phases, with_numbers
from drl_dist.training.guard import Interrupt
from drl_dist.training.loop import StepReport, train
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep

if TYPE_CHECKING:
    from drl_dist.data.index import ShardIndex
    from drl_dist.data.stream import ShardStream

GOAL = 0.01
"""Largest share of waiting."""
_WARM_STEPS = 3
"""Steps that are not counted: they wait for the first images, and the GPU makes its choices in them."""


def run(work: Work) -> None:
    """Make shards, read them alone, then let them feed the slowest and the fastest step of the preset of 128 pixels."""
    try:
        from drl_dist.data.stream import ShardStream
    except ModuleNotFoundError as error:
        raise Skipped(f"no package {error.name}: pip install 'drl_dist[data]' installs what reads shards") from error
    resolution, count, shard_size = (16, 64, 16) if work.is_small else (128, 2048, 256)
    folder, begun = work.folder / "shards", time.perf_counter()
    try:
        index = shards_of(folder, resolution, count, shard_size)
        size = sum(shard.size for shard in index.shards)
        work.tell(what="shards", images=count, resolution=resolution, bytes=size, seconds=time.perf_counter() - begun)

        def stream(batch: int) -> ShardStream:
            # Nothing is kept decoded: a data set of millions of images would not fit.
            loader = LoaderConfig(decoded_mib=0, cache_dir=str(work.folder / "cache"))
            return ShardStream(index, seed=0, batch_size=batch, horizontal_flip=True, loader=loader)

        with stream(64 if not work.is_small else 4) as alone:
            work.tell(what="loader alone", images_per_second=_rate(alone, 2.0 if work.is_small else 5.0))
        cases = {
            "lsun_church128:t6, recovery": phases(with_numbers(preset("lsun_church128")))[-1][1],
            "lsun_church128:unet, recovery": phases(with_numbers(preset("lsun_church128", "unet")))[-1][1],
            "lsun_church128:unet, score matching": phases(with_numbers(preset("lsun_church128", "unet")))[0][1],
        }
        for number, (name, experiment) in enumerate(cases.items()):
            seconds = work.clock.left() / (len(cases) - number)
            if work.was_tried(what=name):
                continue
            with trying(work, what=name):
                _feed(work, name, experiment, stream, min(seconds, 2.0) if work.is_small else seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(work.folder / "cache", ignore_errors=True)


def shards_of(folder: Path, resolution: int, count: int, shard_size: int) -> ShardIndex:
    """Shards of images that are as hard to decode as photographs: coarse shapes with grain."""
    from drl_dist.data.index import ShardIndex, write_index
    from drl_dist.data.shards import Sample, ShardRow, encode_png, pack_shard, shard_name

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows: list[ShardRow] = []
    for number, start in enumerate(range(0, count, shard_size)):
        samples: list[Sample] = []
        for place in range(start, min(count, start + shard_size)):
            coarse = random.integers(0, 256, (3, resolution // 8, resolution // 8)).repeat(8, 1).repeat(8, 2)
            grain = random.normal(0, 6, (3, resolution, resolution))
            samples.append(Sample(place, encode_png(np.clip(coarse + grain, 0, 255).astype(np.uint8))))
        data, row = pack_shard(shard_name("made", "train", number), samples)
        (folder / row.name).write_bytes(data)
        rows.append(row)
    index = ShardIndex(str(folder), "made", "train", resolution, 3, tuple(rows))
    write_index(index)
    return index


def _rate(stream: ShardStream, seconds: float) -> float:
    """Images per second of a stream that is read and not used."""
    begun, images = time.perf_counter(), 0
    for batch in stream:
        images += len(batch.images)
        if time.perf_counter() - begun > seconds:
            break
    return images / (time.perf_counter() - begun)


def _feed(work: Work, name: str, experiment: Experiment, stream: Callable[[int], ShardStream], seconds: float) -> None:
    precision = precisions(work.device)[0]
    if work.is_small:
        small = replace(experiment.model, resolution=16, width_multipliers=(1, 2))
        experiment, precision = tiny(replace(experiment, model=small)), "float32"

    def feed(batch: int) -> None:
        sized = replace(experiment, train=replace(experiment.train, batch_size=batch))
        until, watch = time.monotonic() + seconds, Waits()

        def request() -> Interrupt:
            # One step is counted at least, whatever it takes.
            is_over = time.monotonic() > until and watch.steps > _WARM_STEPS
            return Interrupt.STOP if is_over else Interrupt.NONE

        state = TrainState.create(sized, work.device)
        step = TrainStep(state, sized, engine(precision, "graph"), request)
        with stream(batch) as batches:
            train(step, state, sized, batches, [watch])
        work.tell(
            what=name,
            batch=batch,
            precision=precision,
            steps=watch.steps - _WARM_STEPS,
            images_per_second=batch / watch.mean_seconds,
            waiting_share=watch.share,
            passed=watch.share <= GOAL,
        )

    with arithmetic(precision):
        at_largest_batch(experiment.train.batch_size, feed, work.device, lambda what: work.tell(what=name, note=what))
    free_memory(work.device)


@dataclass
class Waits:
    """A callback that adds up the times of all steps but the first ones."""

    steps: int = 0
    waited: float = 0.0
    taken: float = 0.0

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Count a step."""
        self.steps += 1
        if self.steps > _WARM_STEPS:
            self.waited += report.wait_seconds
            self.taken += report.seconds

    @property
    def share(self) -> float:
        """Share of the time in which steps waited for their images."""
        return self.waited / max(self.taken, 1e-9)

    @property
    def mean_seconds(self) -> float:
        """Of a step."""
        return max(self.taken, 1e-9) / max(1, self.steps - _WARM_STEPS)
