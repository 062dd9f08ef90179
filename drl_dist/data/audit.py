"""A ledger of the images that training consumed: proof, after any faults, that none was lost or came twice."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drl_dist.common.batch import Batch
from drl_dist.data.order import SampleOrder


@dataclass(frozen=True, kw_only=True)
class LedgerLine:
    """One rank's share of one training step; a step that was made again has a further line."""

    time: float
    """When the step got the batch, in seconds since 1970."""
    step: int
    """The step, from 1."""
    rank: int
    world_size: int
    positions: list[int]
    """In the endless stream of samples."""
    shards: list[int]
    """Of the index, as the order says."""
    samples: list[int]
    """In the shard, as the order says."""
    crc32: list[int]
    """Of each image's pixels, as they went into the step."""


def noted(
    batches: Iterable[Batch], folder: Path, order: SampleOrder, *, batch_size: int, rank: int, world_size: int
) -> Iterator[Batch]:
    """The batches as they come; before each goes into training, a line about it goes into a file of this process.

    Args:
        folder: of the ledger, on this machine; made if need be.
        order: of the samples.
        batch_size: images per step over all ranks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank{rank}of{world_size}-{os.getpid()}-{time.time_ns()}.jsonl").open("ab", buffering=0) as file:
        for batch in batches:
            positions = batch.positions.numpy()
            places = order.locate(positions)
            line = LedgerLine(
                time=time.time(),
                step=int(positions[0]) // batch_size + 1,
                rank=rank,
                world_size=world_size,
                positions=positions.tolist(),
                shards=places.shard.tolist(),
                samples=places.sample.tolist(),
                crc32=[zlib.crc32(image.tobytes()) for image in batch.images.numpy()],
            )
            # One unbuffered write: whoever is killed leaves whole lines, but for the last one.
            file.write(json.dumps(line.__dict__, separators=(",", ":")).encode() + b"\n")
            yield batch


def read_ledger(folder: Path) -> list[LedgerLine]:
    """All lines of a ledger by time; a last line that was cut short is left out."""
    lines: list[LedgerLine] = []
    for path in sorted(folder.glob("*.jsonl")):
        whole, _, _ = path.read_text().rpartition("\n")
        lines += [LedgerLine(**json.loads(text)) for text in whole.splitlines()]
    return sorted(lines, key=lambda line: line.time)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a ledger says about the steps that are in the model."""

    num_steps: int
    num_lost: int
    """Positions of the steps that no rank consumed."""
    num_twice: int
    """Positions, or samples within one pass over the data, that were consumed more than once."""
    num_made_again: int
    """Steps begun again after a fault: their first results are not in the model."""
    num_changed: int
    """Positions at which a step that was made again got other pixels than at first."""
    crc32: dict[int, int]
    """Checksum of the pixels by position."""


def audit(lines: Iterable[LedgerLine], *, num_steps: int, batch_size: int, num_samples: int) -> Audit:
    """Hold a ledger against what the run should have consumed.

    A step's last start counts: what came of earlier ones went with the workers that died. The ranks of one start are
    those of its `world_size`.

    Args:
        lines: from `read_ledger`.
        num_steps: of the finished run.
        batch_size: images per step over all ranks.
        num_samples: images in the data set.
    """
    begun: dict[int, list[LedgerLine]] = {}
    for line in sorted(lines, key=lambda line: line.time):
        begun.setdefault(line.step, []).append(line)
    crc32: dict[int, int] = {}
    lost = twice = changed = again = 0
    seen: dict[int, set[tuple[int, int]]] = {}
    for step in range(1, num_steps + 1):
        of_step = begun.get(step, [])
        last = {line.rank: line for line in of_step if line.world_size == of_step[-1].world_size}
        again += len(of_step) > len(last)
        for line in of_step:
            for position, checksum in zip(line.positions, line.crc32, strict=True):
                changed += crc32.setdefault(position, checksum) != checksum
        consumed = [
            (position, (shard, sample))
            for line in last.values()
            for position, shard, sample in zip(line.positions, line.shards, line.samples, strict=True)
        ]
        wanted = set(range((step - 1) * batch_size, step * batch_size))
        positions = {position for position, _ in consumed}
        lost += len(wanted - positions)
        twice += len(consumed) - len(positions & wanted)
        for position, place in consumed:
            of_pass = seen.setdefault(position // num_samples, set())
            twice += place in of_pass
            of_pass.add(place)
    return Audit(
        num_steps=num_steps,
        num_lost=lost,
        num_twice=twice,
        num_made_again=again,
        num_changed=changed,
        crc32=crc32,
    )
