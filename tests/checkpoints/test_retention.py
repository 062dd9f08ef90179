"""What a kill left in storage is removed, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drl_dist.checkpoints.retention import SNAPSHOT, remove_orphaned
from drl_dist.checkpoints.storage import StoredCheckpoint, checkpoint_name, stored_checkpoints, upload_checkpoint
from tests.helpers.checkpoints import add


def steps(run_url: str) -> list[int]:
    return [stored.step for stored in stored_checkpoints(run_url)]


def newest(run_url: str, step: int) -> StoredCheckpoint:
    return StoredCheckpoint(f"{run_url}/{checkpoint_name(step)}", step)


def test_only_the_newest_complete_ones_stay(tmp_path: Path) -> None:
    for step in range(1, 8):
        add(tmp_path, step)
    for unfinished in (3, 6):
        (tmp_path / checkpoint_name(unfinished) / "checksums.json").unlink()
    (tmp_path / "experiment.json").write_text("{}")
    removed = remove_orphaned(str(tmp_path), 3, newest(str(tmp_path), 7))
    assert [stored.step for stored in removed] == [3, 2, 1]
    assert steps(str(tmp_path)) == [7, 6, 5, 4]
    assert (tmp_path / "experiment.json").exists()
    assert not remove_orphaned(str(tmp_path), 3, newest(str(tmp_path), 7))


def test_what_ray_knows_of_is_left_to_ray(tmp_path: Path) -> None:
    for step in range(1, 6):
        add(tmp_path, step)
    listed = [{"checkpoint_dir_name": checkpoint_name(step)} for step in (2, 4, 5)]
    (tmp_path / SNAPSHOT).write_text(json.dumps({"checkpoint_results": listed}))
    remove_orphaned(str(tmp_path), 1, newest(str(tmp_path), 5))
    assert steps(str(tmp_path)) == [5, 4, 2]


def test_damaged_ones_count_for_nothing(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        add(tmp_path, step)
    # 3 and 4 do not verify: 2 is what the run continues from.
    remove_orphaned(str(tmp_path), 1, newest(str(tmp_path), 2))
    assert steps(str(tmp_path)) == [4, 3, 2]


@pytest.mark.parametrize("keep", [None, 3, 4])
def test_no_more_than_asked_for(tmp_path: Path, keep: int | None) -> None:
    for step in (1, 2, 3):
        add(tmp_path, step)
    assert not remove_orphaned(str(tmp_path), keep, newest(str(tmp_path), 3))
    assert steps(str(tmp_path)) == [3, 2, 1]


@pytest.mark.integration
def test_in_a_bucket(gcs_bucket: str, tmp_path: Path) -> None:
    run_url = f"{gcs_bucket}/runs/orphaned"
    for step in (1, 2, 3):
        upload_checkpoint(add(tmp_path, step), f"{run_url}/{checkpoint_name(step)}")
    assert [stored.step for stored in remove_orphaned(run_url, 2, newest(run_url, 3))] == [1]
    assert steps(run_url) == [3, 2]
