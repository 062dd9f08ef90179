"""Checkpoints in object storage on a bad day: complete and right, or not there, or told."""

from __future__ import annotations

from pathlib import Path

import pytest

from drl_dist.checkpoints.format import PARTS, read_checkpoint
from drl_dist.checkpoints.storage import checkpoint_name, fetch_checkpoint, newest_checkpoint, upload_checkpoint
from drl_dist.checkpoints.verify import newest_verified_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.data import filesystem
from drl_dist.jobs.train import storage
from drl_dist.jobs.train.storage import Uploader
from tests.faulty_proxy import Fault, FaultyProxy
from tests.helpers.checkpoints import add

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("fault", ["error 503", "reset", "slow", "flipped upload"])
def test_an_upload_outlasts_faults(fault: Fault, proxy: FaultyProxy, gcs_bucket: str, tmp_path: Path) -> None:
    rule = proxy.add("POST", "ema.safetensors", fault, seconds=1.0)
    url = f"{gcs_bucket}/run/{checkpoint_name(1)}"
    upload_checkpoint(add(tmp_path, 1), url)
    assert rule.done == 1
    assert read_checkpoint(fetch_checkpoint(url, PARTS), PARTS).state.step == 1


def test_a_refused_upload_is_tried_again_and_told(
    proxy: FaultyProxy,
    gcs_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(storage, "UPLOAD_PAUSES", (0.1, 0.1))
    run_url, name = f"{gcs_bucket}/run", checkpoint_name(2)
    upload_checkpoint(add(tmp_path, 1), f"{run_url}/{checkpoint_name(1)}")
    proxy.add("POST", f"{name}/optimizer.safetensors", "error 403", times=4)
    Uploader(run_url).upload(add(tmp_path, 2), name)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith(f"uploading {name} failed (storage {run_url}/{name}/optimizer")
    newest = newest_verified_checkpoint(run_url)
    assert newest is not None and newest.step == 2


def test_an_upload_that_fails_for_good_leaves_the_one_before(
    proxy: FaultyProxy, gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "UPLOAD_PAUSES", (0.1,))
    run_url, name = f"{gcs_bucket}/run", checkpoint_name(2)
    upload_checkpoint(add(tmp_path, 1), f"{run_url}/{checkpoint_name(1)}")
    proxy.add("POST", f"{name}/weights.safetensors", "error 403", times=1000)
    with pytest.raises(UserError, match=rf"storage {run_url}/{name}/weights.safetensors: got OSError: Forbidden"):
        Uploader(run_url).upload(add(tmp_path, 2), name)
    newest, lines = newest_checkpoint(run_url), list[str]()
    assert newest is not None and newest.step == 1
    assert newest_verified_checkpoint(run_url, lines.append) == newest
    assert lines == [f"passing over checkpoint {run_url}/{name}: it is unfinished (no checksums.json)"]


@pytest.mark.parametrize("fault", ["error 503", "short body", "stall", "truncated", "flipped bit"])
def test_a_fault_on_the_way_is_no_damage(fault: Fault, proxy: FaultyProxy, gcs_bucket: str, tmp_path: Path) -> None:
    run_url, lines = f"{gcs_bucket}/run", list[str]()
    for step in (1, 2):
        upload_checkpoint(add(tmp_path, step), f"{run_url}/{checkpoint_name(step)}")
    read = proxy.add("GET", f"{checkpoint_name(2)}/ema.safetensors", fault)
    newest = newest_verified_checkpoint(run_url, lines.append)
    assert newest is not None and (newest.step, lines, read.done) == (2, [], 1)
    fetched = proxy.add("GET", f"{checkpoint_name(2)}/weights.safetensors", fault)
    assert read_checkpoint(fetch_checkpoint(newest.url, PARTS), PARTS).state.step == 2
    assert fetched.done == 1


def test_storage_that_does_not_answer_is_no_reason_to_take_an_older_one(
    proxy: FaultyProxy, gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "REQUEST_DEADLINE", 1.0)
    run_url = f"{gcs_bucket}/run"
    for step in (1, 2):
        upload_checkpoint(add(tmp_path, step), f"{run_url}/{checkpoint_name(step)}")
    proxy.add("GET", f"{checkpoint_name(2)}/ema.safetensors", "stall", times=1000)
    with pytest.raises(UserError, match=rf"storage {run_url}/{checkpoint_name(2)}/ema.safetensors: got no answer"):
        newest_verified_checkpoint(run_url)


@pytest.mark.parametrize("fault", ["truncated", "flipped bit"])
def test_what_stays_damaged_is_told_on_reading(
    fault: Fault, proxy: FaultyProxy, gcs_bucket: str, tmp_path: Path
) -> None:
    url = f"{gcs_bucket}/run/{checkpoint_name(1)}"
    upload_checkpoint(add(tmp_path, 1), url)
    proxy.add("GET", "ema.safetensors", fault, times=1000)
    with pytest.raises(UserError, match=r"checkpoint file .*ema.safetensors: got "):
        read_checkpoint(fetch_checkpoint(url))
