"""The audit log shows what was lost, what came twice, and what differed the second time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from drl_dist.common.batch import Batch
from drl_dist.data.audit import Audit, AuditEntry, audit, audited, read_audit_log
from drl_dist.data.order import SampleOrder

COUNTS, BATCH = [5, 3, 4], 4
ORDER = SampleOrder(COUNTS, 7, 2)


def batches(rank: int, world_size: int, steps: range) -> list[Batch]:
    made: list[Batch] = []
    for step in steps:
        positions = torch.arange(step * BATCH + rank, (step + 1) * BATCH, world_size)
        made.append(Batch((positions % 12).to(torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2), positions))
    return made


def write(folder: Path, rank: int, world_size: int, steps: range) -> None:
    source = batches(rank, world_size, steps)
    assert list(audited(source, folder, ORDER, batch_size=BATCH, rank=rank, world_size=world_size)) == source


def checked(lines: list[AuditEntry]) -> Audit:
    return audit(lines, num_steps=9, batch_size=BATCH, num_samples=12)


@pytest.fixture
def lines(tmp_path: Path) -> list[AuditEntry]:
    """Two ranks make 5 steps and die; one rank makes the rest and repeats two steps; the last line is incomplete."""
    for rank in range(2):
        write(tmp_path, rank, 2, range(5))
    write(tmp_path, 0, 1, range(3, 9))
    with next(iter(tmp_path.glob("rank0of1*"))).open("a") as file:
        file.write('{"time": 1')
    return read_audit_log(tmp_path)


def test_an_intact_audit_log(lines: list[AuditEntry]) -> None:
    found = checked(lines)
    assert (found.num_lost, found.num_twice, found.num_made_again, found.num_changed) == (0, 0, 2, 0)
    assert sorted(found.crc32) == list(range(36))


def test_a_lost_share_is_seen(lines: list[AuditEntry]) -> None:
    gone = next(line for line in lines if line.step == 2 and line.rank == 1)
    assert checked([line for line in lines if line is not gone]).num_lost == 2


def test_a_sample_that_comes_twice_is_seen(lines: list[AuditEntry]) -> None:
    one, two = (next(line for line in lines if line.step == step and line.rank == 0) for step in (1, 2))
    copied = dataclasses.replace(two, shards=one.shards, samples=one.samples)
    assert checked([copied if line is two else line for line in lines]).num_twice == 2


def test_positions_of_another_step_are_seen(lines: list[AuditEntry]) -> None:
    last = max(lines, key=lambda line: line.step)
    moved = dataclasses.replace(last, positions=[position - BATCH for position in last.positions])
    found = checked([moved if line is last else line for line in lines])
    assert found.num_lost == BATCH and found.num_twice >= BATCH


def test_other_pixels_the_second_time_are_seen(lines: list[AuditEntry]) -> None:
    again = next(line for line in reversed(lines) if line.step == 5)
    changed = dataclasses.replace(again, crc32=[0, *again.crc32[1:]])
    assert checked([changed if line is again else line for line in lines]).num_changed == 1
