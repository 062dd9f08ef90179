"""Audit log of the images that training consumes, and the check that none was lost or used twice, whatever failed."""

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
class AuditEntry:
    """One rank's share of one training step; a step that is repeated has further entries."""

    time: float
    """When the step received the batch, in seconds since 1970."""
    step: int
    """Number of the step, from 1."""
    rank: int
    world_size: int
    positions: list[int]
    """Position of each image in the endless stream of samples."""
    shards: list[int]
    """Shard of each position by `SampleOrder`, as a number in the index."""
    samples: list[int]
    """Sample of each position by `SampleOrder`, as a number in the shard."""
    crc32: list[int]
    """Checksum of each image's pixels, as they went into the step."""


def audited(
    batches: Iterable[Batch], folder: Path, order: SampleOrder, *, batch_size: int, rank: int, world_size: int
) -> Iterator[Batch]:
    """Pass batches on; before each one, write its entry to this process's own file of the audit log.

    Args:
        folder: folder of the audit log, on this machine; created if needed.
        order: order of the samples.
        batch_size: images per step over all ranks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank{rank}of{world_size}-{os.getpid()}-{time.time_ns()}.jsonl").open("ab", buffering=0) as file:
        for batch in batches:
            positions = batch.positions.numpy()
            places = order.locate(positions)
            line = AuditEntry(
                time=time.time(),
                step=int(positions[0]) // batch_size + 1,
                rank=rank,
                world_size=world_size,
                positions=positions.tolist(),
                shards=places.shard.tolist(),
                samples=places.sample.tolist(),
                crc32=[zlib.crc32(image.tobytes()) for image in batch.images.numpy()],
            )
            # One unbuffered write per line: a killed process leaves complete lines, except perhaps the last one.
            file.write(json.dumps(line.__dict__, separators=(",", ":")).encode() + b"\n")
            yield batch


def read_audit_log(folder: Path) -> list[AuditEntry]:
    """All entries of an audit log in order of time; an incomplete last line of a file is left out."""
    lines: list[AuditEntry] = []
    for path in sorted(folder.glob("*.jsonl")):
        whole, _, _ = path.read_text().rpartition("\n")
        lines += [AuditEntry(**json.loads(text)) for text in whole.splitlines()]
    return sorted(lines, key=lambda line: line.time)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Results of checking an audit log, for the steps that are in the model."""

    num_steps: int
    num_lost: int
    """Positions of these steps that no rank consumed."""
    num_twice: int
    """Positions, or samples within one pass over the data, that were consumed more than once."""
    num_made_again: int
    """Steps repeated after a fault: the results of their earlier attempts are not in the model."""
    num_changed: int
    """Positions at which a repeated step received other pixels than the first time."""
    crc32: dict[int, int]
    """Checksum of the pixels by position."""


def audit(lines: Iterable[AuditEntry], *, num_steps: int, batch_size: int, num_samples: int) -> Audit:
    """Compare an audit log with what the run should have consumed.

    The last attempt at a step counts: the results of earlier ones were lost with the workers that died. The entries of
    one attempt are those with its `world_size`.

    Args:
        lines: entries from `read_audit_log`.
        num_steps: steps of the finished run.
        batch_size: images per step over all ranks.
        num_samples: images in the data set.
    """
    begun: dict[int, list[AuditEntry]] = {}
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
