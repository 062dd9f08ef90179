"""The newest checkpoint that verifies is used, and each one passed over is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from drl_dist.checkpoints.format import PARTS
from drl_dist.checkpoints.storage import StoredCheckpoint, checkpoint_name, upload_checkpoint
from drl_dist.checkpoints.verify import newest_verified_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.jobs.train.storage import drop_stale_snapshot
from tests.helpers.checkpoints import add
from tests.support import flip_bit

FILES = ("config.json", "state.json", *(f"{part}.safetensors" for part in PARTS))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _unlist(path: Path) -> None:
    listed = path.with_name("checksums.json")
    listed.write_text(json.dumps({k: v for k, v in json.loads(listed.read_text()).items() if k != path.name}))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_bit, r"{name} has SHA-256 \w{{16}}\.\.\., expected \w{{16}}\.\.\."),
        (_cut, r"{name} has \d+ bytes, expected \d+"),
        (Path.unlink, "{name} is missing"),
        (_unlist, "checksums.json does not list {name}"),
    ],
)
def test_a_damaged_one_is_passed_over_and_told(
    name: str, damage: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    add(tmp_path, 1)
    url, lines = str(tmp_path / checkpoint_name(2)), list[str]()
    damage(add(tmp_path, 2) / name)
    assert newest_verified_checkpoint(str(tmp_path), lines.append) == StoredCheckpoint(
        str(tmp_path / checkpoint_name(1)), 1
    )
    assert len(lines) == 1
    told = told.format(name=name.replace(".", r"\."))
    assert re.fullmatch(f"passing over checkpoint {url}: {told}", lines[0]), lines


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ema.safetensors": 1}', '{"ema.safetensors": {"bytes": "x"}}'])
def test_checksums_that_are_none_are_told(text: str, tmp_path: Path) -> None:
    add(tmp_path, 1)
    (add(tmp_path, 2) / "checksums.json").write_text(text)
    lines = list[str]()
    newest = newest_verified_checkpoint(str(tmp_path), lines.append)
    assert newest is not None and newest.step == 1
    assert [line.rsplit(": ", 1)[1] for line in lines] == ["checksums.json is damaged"]


def test_sound_ones_need_no_words(tmp_path: Path) -> None:
    lines = list[str]()
    assert newest_verified_checkpoint(str(tmp_path / "nowhere"), lines.append) is None
    for step in (9, 10):
        add(tmp_path, step)
    newest = newest_verified_checkpoint(str(tmp_path), lines.append)
    assert newest is not None and newest.step == 10
    assert not lines


def test_only_damaged_ones_are_no_reason_to_start_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        flip_bit(add(tmp_path, step) / "ema.safetensors")
    with pytest.raises(UserError, match=rf"run {tmp_path}: got damaged checkpoints only .*{checkpoint_name(2)}: ema"):
        newest_verified_checkpoint(str(tmp_path))


def test_a_first_upload_that_broke_off_is(tmp_path: Path) -> None:
    (add(tmp_path, 1) / "checksums.json").unlink()
    lines = list[str]()
    assert newest_verified_checkpoint(str(tmp_path), lines.append) is None
    assert lines == [f"passing over checkpoint {tmp_path / checkpoint_name(1)}: it is unfinished (no checksums.json)"]


def test_rays_list_goes_if_it_names_a_later_checkpoint(tmp_path: Path) -> None:
    import ray

    for step in (1, 2):
        add(tmp_path, step)
    listed = [{"checkpoint_dir_name": checkpoint_name(step)} for step in (1, 2)]
    snapshot = tmp_path / "checkpoint_manager_snapshot.json"
    snapshot.write_text(json.dumps({"ray_version": ray.__version__, "checkpoint_results": listed}))
    assert not drop_stale_snapshot(str(tmp_path), StoredCheckpoint("", 2))
    assert drop_stale_snapshot(str(tmp_path), StoredCheckpoint("", 1))
    assert not snapshot.exists()


@pytest.mark.integration
def test_in_a_bucket(gcs_bucket: str, tmp_path: Path) -> None:
    run_url, lines = f"{gcs_bucket}/runs/one", list[str]()
    for step in (1, 2, 3):
        folder = add(tmp_path, step)
        if step == 2:
            flip_bit(folder / "optimizer.safetensors")
        if step == 3:
            _cut(folder / "config.json")
        upload_checkpoint(folder, f"{run_url}/{checkpoint_name(step)}")
    assert newest_verified_checkpoint(run_url, lines.append) == StoredCheckpoint(f"{run_url}/{checkpoint_name(1)}", 1)
    assert [line.split(": ", 1)[1].split(" has ")[0] for line in lines] == ["config.json", "optimizer.safetensors"]
