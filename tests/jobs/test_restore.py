"""What the workers continue from: read once, by the first rank, and the same on all."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from drl_dist.checkpoints.format import CHECKSUMS, PARTS, CheckpointState, part_file, write_checkpoint
from drl_dist.checkpoints.retention import SNAPSHOT
from drl_dist.checkpoints.storage import checkpoint_name, stored_checkpoints
from drl_dist.checkpoints.verify import newest_to_resume
from drl_dist.common.errors import UserError
from drl_dist.config.tree import CheckpointConfig, RunConfig
from drl_dist.jobs.train import driver as train_driver
from drl_dist.jobs.train.faults.restarts import OutdatedListError, RestartPolicy
from drl_dist.jobs.train.faults.restore import restore
from drl_dist.training.state import TrainState
from tests.helpers.steps import tiny
from tests.support import flip_bit

CONTENTS = ("config.json", "state.json", *map(part_file, PARTS))


class CountingFiles(LocalFileSystem):
    """Counts how often each file is read."""

    reads: ClassVar[Counter[str]] = Counter()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self.reads["/".join(path.split("/")[-2:])] += 1
        return super().cat_file(path, start, end, **options)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    CountingFiles.reads.clear()
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda _scheme: CountingFiles)
    return CountingFiles.reads


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """Of which three checkpoints are there."""
    config = RunConfig(experiment=tiny(num_steps=100), run_name="a", storage=str(tmp_path))
    for step in (4, 8, 12):
        write(config, step)
    return config


def write(run: RunConfig, step: int) -> Path:
    parts = TrainState.create(run.experiment).tensors()
    parts["ema"] = {name: torch.full_like(value, step) for name, value in parts["ema"].items()}
    done = CheckpointState(step=step, images_seen=step, next_position=step, seed=0, data_fingerprint="f", world_size=1)
    folder = Path(run.url) / checkpoint_name(step)
    write_checkpoint(folder, parts, done, run.experiment)
    return folder


def restored(run: RunConfig) -> list[tuple[int, float]]:
    """Step and averaged weight of two ranks that restore."""
    sent: list[bytes] = []

    def send(content: bytes | None) -> bytes:
        assert content is not None
        sent.append(content)
        return content

    def receive(content: bytes | None) -> bytes:
        assert content is None
        return sent.pop(0)

    found: list[tuple[int, float]] = []
    for is_first, share in ((True, send), (False, receive)):
        state = TrainState.create(run.experiment)
        restore(state, run, "f", is_first=is_first, share=share)
        found.append((state.step, float(next(iter(state.ema.shadow.values())).flatten()[0])))
    assert not sent
    return found


def list_in_ray(run: RunConfig, *steps: int) -> None:
    listed = [{"checkpoint_dir_name": checkpoint_name(step)} for step in steps]
    (Path(run.url) / SNAPSHOT).write_text(json.dumps({"checkpoint_results": listed}))


def test_a_start_reads_each_file_of_one_checkpoint_once(run: RunConfig, reads: Counter[str]) -> None:
    # The driver, then all ranks.
    newest = newest_to_resume(run.url, run.experiment.train.num_steps)
    assert newest is not None and newest.step == 12
    assert restored(run) == [(12, 12.0), (12, 12.0)]
    contents = {name: count for name, count in reads.items() if not name.endswith((CHECKSUMS, SNAPSHOT))}
    assert contents == {f"{checkpoint_name(12)}/{name}": 1 for name in CONTENTS}


@pytest.mark.parametrize("name", CONTENTS)
def test_all_ranks_pass_over_a_damaged_one(
    name: str, run: RunConfig, reads: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flip_bit(Path(run.url) / checkpoint_name(12) / name)
    newest = newest_to_resume(run.url, run.experiment.train.num_steps)
    assert newest is not None and newest.step == 12
    assert restored(run) == [(8, 8.0), (8, 8.0)]
    assert max(reads[f"{checkpoint_name(step)}/{file}"] for step in (8, 12) for file in CONTENTS) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"passing over checkpoint {run.url}/{checkpoint_name(12)}: {name} has SHA-256")
    assert second == f"resuming after step 8 from {run.url}/{checkpoint_name(8)}"


def test_a_finished_run_is_read_by_the_driver(run: RunConfig, reads: Counter[str]) -> None:
    newest = newest_to_resume(run.url, 12)
    assert newest is not None and newest.step == 12
    assert all(reads[f"{checkpoint_name(12)}/{name}"] == 1 for name in CONTENTS)
    flip_bit(Path(run.url) / checkpoint_name(12) / "ema.safetensors")
    newest = newest_to_resume(run.url, 12)
    assert newest is not None and newest.step == 8
    assert not any(reads[f"{checkpoint_name(8)}/{name}"] for name in CONTENTS)


def test_damaged_ones_only_end_the_run(run: RunConfig) -> None:
    for step in (4, 8, 12):
        flip_bit(Path(run.url) / checkpoint_name(step) / "optimizer.safetensors")
    with pytest.raises(UserError, match=r"got damaged checkpoints only .*checkpoint_000000012: optimizer"):
        restored(run)


def test_a_new_run_starts_from_nothing_or_from_another(run: RunConfig, reads: Counter[str]) -> None:
    other = dataclasses.replace(run, run_name="b")
    assert [step for step, _ in restored(other)] == [0, 0]
    other = dataclasses.replace(other, start_from=f"{run.url}/{checkpoint_name(8)}")
    assert restored(other) == [(8, 8.0), (8, 8.0)]
    assert all(reads[f"{checkpoint_name(8)}/{name}"] == 1 for name in CONTENTS)
    flip_bit(Path(run.url) / checkpoint_name(8) / "ema.safetensors")
    with pytest.raises(UserError, match=r"checkpoint .*/a/checkpoint_000000008: got ema\.safetensors has SHA-256"):
        restored(other)


def test_what_a_kill_left_goes_once_a_checkpoint_has_verified(run: RunConfig) -> None:
    run = dataclasses.replace(run, checkpoint=CheckpointConfig(keep=1))
    flip_bit(Path(run.url) / checkpoint_name(12) / "ema.safetensors")
    # The newest does not count: 8 is the only one that is left to resume from.
    assert restored(run)[0][0] == 8
    assert [stored.step for stored in stored_checkpoints(run.url)] == [12, 8]


@pytest.mark.parametrize(("listed", "is_outdated"), [((4, 8), False), ((8, 12), True)])
def test_a_list_of_ray_s_that_names_a_damaged_one_is_outdated(
    listed: tuple[int, ...], is_outdated: bool, run: RunConfig
) -> None:
    flip_bit(Path(run.url) / checkpoint_name(12) / "ema.safetensors")
    list_in_ray(run, *listed)
    if not is_outdated:
        assert restored(run)[0][0] == 8
        return
    with pytest.raises(OutdatedListError) as raised:
        restored(run)
    assert raised.value.step == 8
    # Ray Train ends with it, and is started again without the list.
    with pytest.raises(OutdatedListError):
        RestartPolicy().after_exception(None, {0: raised.value, 1: RuntimeError("connection closed by peer")})


@pytest.mark.parametrize("text", ['{"ray_ver', "[]", "{}"])
def test_a_list_of_ray_s_that_is_torn_is_outdated(text: str, run: RunConfig) -> None:
    (Path(run.url) / SNAPSHOT).write_text(text)
    with pytest.raises(OutdatedListError):
        restored(run)


def test_ray_train_starts_again_without_an_outdated_list(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    list_in_ray(run, 8, 12)
    starts: list[bool] = []

    def fit_once(*_: object) -> None:
        starts.append((Path(run.url) / SNAPSHOT).exists())
        if len(starts) == 1:
            raise OutdatedListError(8)

    monkeypatch.setattr(train_driver, "_fit_once", fit_once)
    task: Any = type("Task", (), {"run": run})
    train_driver._fit(task, None, ())  # pyright: ignore[reportArgumentType]
    assert starts == [True, False]
    assert "list of checkpoints was torn or outdated" in capsys.readouterr().out
