"""Checkpoints below a storage URL: the newest complete one, and nothing torn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from drl_dist.checkpoints.format import read_checkpoint
from drl_dist.checkpoints.storage import (
    checkpoint_name,
    complete_checkpoints,
    fetch_checkpoint,
    newest_checkpoint,
    upload_checkpoint,
)
from drl_dist.common.errors import UserError
from tests.helpers.checkpoints import add


def step_of(folder: Path) -> int:
    return read_checkpoint(folder).state.step


def test_the_newest_complete_one_is_found(tmp_path: Path) -> None:
    for step in (10, 9, 100):
        add(tmp_path, step)
    (tmp_path / "experiment.json").write_text("{}")
    (tmp_path / "checkpoint_of_mine").mkdir()
    assert [found.step for found in complete_checkpoints(str(tmp_path))] == [100, 10, 9]
    assert step_of(fetch_checkpoint(tmp_path.as_uri())) == 100
    assert step_of(fetch_checkpoint(str(tmp_path / checkpoint_name(9)))) == 9


@pytest.mark.parametrize("damage", ["no checksums", "torn checksums", "missing", "truncated", "list", "number"])
def test_incomplete_ones_are_passed_over(tmp_path: Path, damage: str) -> None:
    add(tmp_path, 1)
    newer = add(tmp_path, 2)
    checksums, ema = newer / "checksums.json", newer / "ema.safetensors"
    if damage == "no checksums":
        checksums.unlink()
    elif damage == "missing":
        ema.unlink()
    elif damage == "truncated":
        ema.write_bytes(ema.read_bytes()[:-1])
    else:
        text = checksums.read_text()
        checksums.write_text({"torn checksums": text[: len(text) // 2], "list": "[]", "number": '{"ema": 1}'}[damage])
    newest = newest_checkpoint(str(tmp_path))
    assert newest is not None
    assert newest.step == 1


def test_nothing_there(tmp_path: Path) -> None:
    assert newest_checkpoint(str(tmp_path / "nowhere")) is None
    with pytest.raises(UserError, match="no complete checkpoint there"):
        fetch_checkpoint(str(tmp_path / "nowhere"))


def test_a_storage_in_the_place_of_a_run_names_its_runs(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "first" / "checkpoint_000000004").mkdir(parents=True)
    with pytest.raises(UserError) as refused:
        fetch_checkpoint(str(tmp_path))
    assert str(refused.value) == (
        f"checkpoint {tmp_path}: got no checkpoint but runs, such as {tmp_path}/first, expected a checkpoint folder or "
        f"a run folder; choose one of those that python -m drl_dist list {tmp_path} shows."
    )


def test_upload_is_complete_only_at_its_end(tmp_path: Path) -> None:
    local = add(tmp_path / "local", 5)
    target = tmp_path / "run" / checkpoint_name(5)
    upload_checkpoint(local, target.as_uri())
    assert step_of(fetch_checkpoint(str(tmp_path / "run"))) == 5
    assert {path.name for path in target.iterdir()} == {path.name for path in local.iterdir()}
    # A second upload that breaks off leaves no complete checkpoint behind.
    (local / "weights.safetensors").unlink()
    (local / "weights.safetensors").mkdir()
    with pytest.raises(IsADirectoryError):
        upload_checkpoint(local, target.as_uri())
    assert newest_checkpoint(str(tmp_path / "run")) is None


def test_a_bit_flip_is_found_on_reading(tmp_path: Path) -> None:
    folder = add(tmp_path, 3)
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 0x40
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors: got SHA-256"):
        read_checkpoint(fetch_checkpoint(str(tmp_path)), ("weights",))
    assert json.loads((folder / "checksums.json").read_text()).keys() >= {"ema.safetensors"}
    shutil.rmtree(folder)
