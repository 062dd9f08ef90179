"""Training without Ray: a run's folder, resumption, stopping, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from PIL import Image

from drl_dist.checkpoints.format import PARTS, read_checkpoint
from drl_dist.checkpoints.run_status import RunStatus, read_status
from drl_dist.common.errors import UserError
from drl_dist.common.images import MIN_WIDTH, PROGRESSION_TITLE
from drl_dist.common.program import Stopped
from drl_dist.common.waiting import Waiting
from drl_dist.config.tree import RunConfig
from drl_dist.data.pixels.array_file import read_array_file
from drl_dist.jobs.common.output.sheet import images_in
from drl_dist.jobs.train import single_device as train_single_device
from drl_dist.jobs.train.options import parse_train_options
from drl_dist.jobs.train.single_device import LocalCheckpoints, train_on_one_device
from drl_dist.tracking.files.table import histories, read_table
from drl_dist.training.in_memory import InMemoryBatches
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState
from tests.data.sets import write_set

STEPS, BATCH = 4, 4


def parsed(data: Path, storage: Path, name: str, *more: str) -> RunConfig:
    words = {
        "--data": data,
        "--storage": storage,
        "--run-name": name,
        "--model.width": 4,
        "--model.time-hidden-dim": 8,
        "--mcmc.num-chain-steps": 2,
        "--train.batch-size": BATCH,
        "--train.num-steps": STEPS,
        "--checkpoint.every-steps": 2,
        "--tracking.sample-every-steps": 100,
        "--tracking.num-samples": 2,
        "--engine.threads-per-worker": 1,
    }
    arguments = [str(word) for pair in words.items() for word in pair]
    run, options = parse_train_options("digits", ["--without-ray", "--setting", "t6", *arguments, *more])
    assert options.without_ray
    return run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_set(str(folder))
    return folder


@pytest.fixture(scope="module")
def array_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = torch.randint(0, 256, (10, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = tmp_path_factory.mktemp("array") / "images.npy"
    np.save(path, images.numpy())
    return path


@pytest.fixture(scope="module")
def straight(array_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    storage = tmp_path_factory.mktemp("runs")
    assert train_on_one_device(parsed(array_file, storage, "straight")) == 0
    return storage / "straight"


def logged(folder: Path) -> list[int]:
    """Steps of the loss, in the order in which they were logged."""
    return read_table(str(folder), ["loss"])["step"].to_pylist()


def tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return read_checkpoint(folder / f"checkpoint_{STEPS:09d}", PARTS).tensors


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for part, values in ours.items():
        for name, value in values.items():
            assert torch.equal(value, theirs[part][name]), f"{part} {name}"


def test_checkpoints_when_they_pay_change_no_number(
    array_file: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Machines of such a short life want a checkpoint as soon as something can be written.
    more = ("--checkpoint.every-steps", "auto", "--checkpoint.machine-lifetime-hours", "1e-9")
    assert train_on_one_device(parsed(array_file, tmp_path, "auto", *more)) == 0
    written = sorted(int(path.name.rpartition("_")[2]) for path in (tmp_path / "auto").glob("checkpoint_*"))
    assert written[0] < STEPS == written[-1]
    assert_same(tmp_path / "auto", straight)
    # And it resumes, with a fixed interval as well.
    (tmp_path / "auto" / f"checkpoint_{STEPS:09d}" / "checksums.json").unlink()
    assert train_on_one_device(parsed(array_file, tmp_path, "auto")) == 0
    assert f"resuming after step {written[-2]} from" in capsys.readouterr().out
    assert_same(tmp_path / "auto", straight)


@pytest.mark.slow
def test_a_run_writes_metrics_pictures_curves_and_checkpoints(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--checkpoint.keep", "1", "--tracking.sample-every-steps", "2")
    run = parsed(shards, tmp_path, "a", *more, "--loader.ledger-dir", str(tmp_path / "audit"))
    assert train_on_one_device(run) == 0
    printed = capsys.readouterr().out
    assert "run a: starting on cpu" in printed and "images/s" in printed
    coming = "run a: to come: samples of the untrained network, the first images of the data, step 1\n"
    assert printed.count(coming) == 1
    folder = tmp_path / "a"
    assert logged(folder) == [1, 2, 3, 4]
    found = histories(read_table(str(folder)))
    assert {"loss", "grad_norm", "images_per_second", "images_seen", "saturated_fraction"} < found.keys()
    assert found["images_seen"].values[STEPS] == STEPS * BATCH
    assert found["loss"].times.keys() == {1, 2, 3, 4} and abs(found["loss"].times[4] - time.time()) < 300
    assert read_status(str(folder)) == RunStatus(state="finished", since=ANY, starts=1, first_start=ANY)
    pictures = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    each = {f"pictures/{name}/step_{step:08d}.png" for name in ("samples", "progression") for step in (0, 2, 4)}
    assert pictures == {"samples.png", "progression.png", "curves.png"} | each
    assert (folder / "samples.png").read_bytes() == (folder / "pictures/samples/step_00000004.png").read_bytes()
    with Image.open(folder / "curves.png") as picture:
        assert picture.info["Description"] == "curves of a" and picture.width >= MIN_WIDTH
    for name, title, count in (
        ("samples", "samples of the averaged weights", 2),
        ("progression", PROGRESSION_TITLE, 14),
    ):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.info["Description"] == f"run a (digits), step {STEPS} of {STEPS}, seed 0"
            assert picture.width >= MIN_WIDTH
            images = images_in(picture)
        assert images is not None and {title: (count, 1, 8, 8)} == {
            key: tuple(one.shape) for key, one in images.items()
        }
    # The older one is removed.
    assert sorted(path.name for path in folder.glob("checkpoint_*")) == ["checkpoint_000000004"]
    audit = [line for path in (tmp_path / "audit" / "a").iterdir() for line in path.read_text().splitlines()]
    assert len(audit) == STEPS
    assert train_on_one_device(run) == 0
    assert "run a has made its 4 steps; its last checkpoint is " in capsys.readouterr().out


@pytest.mark.slow
def test_each_part_that_takes_long_is_said(
    array_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = Waiting.begin

    def slowly(self: Waiting, what: str, **more: Any) -> None:
        begin(self, what, **more)
        time.sleep(0.12)

    monkeypatch.setattr(train_single_device, "Waiting", partial(Waiting, seconds=0.06))
    monkeypatch.setattr(Waiting, "begin", slowly)
    assert train_on_one_device(parsed(array_file, tmp_path, "slow")) == 0
    said = re.findall(r"run slow: (.*), for .* so far\n", capsys.readouterr().out)
    parts = [f"reading {array_file}", f"looking for the newest checkpoint in {tmp_path}/slow", "making the network"]
    parts += ["to come: samples of the untrained network, the first images of the data, step 1"]
    parts += ["callbacks after step 1", "making step 2 of 4", "writing a checkpoint after step 2"]
    parts += ["making step 3 of 4", "drawing samples, writing a checkpoint after step 4"]
    assert [part for part in dict.fromkeys(said) if part in parts] == parts


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], None]) -> None:
    """Let something happen after a step, before its checkpoint."""
    write = LocalCheckpoints.on_step

    def on_step(self: LocalCheckpoints, report: StepReport, state: TrainState) -> None:
        if report.step == at:
            act()
        write(self, report, state)

    monkeypatch.setattr(LocalCheckpoints, "on_step", on_step)


class Killed(BaseException):
    """Ends a run on the spot."""


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_bits_and_logs_no_step_twice(
    array_file: Path,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def kill() -> None:
        raise Killed

    run = parsed(array_file, tmp_path, "killed")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupted(patch, 3, kill)
        train_on_one_device(run)
    assert logged(tmp_path / "killed") == [1, 2, 3]
    status = read_status(str(tmp_path / "killed"))
    assert status is not None and (status.state, status.starts) == ("stopped", 1)
    capsys.readouterr()
    assert train_on_one_device(run) == 0
    assert "run killed: resuming after step 2 from " in capsys.readouterr().out
    assert logged(tmp_path / "killed") == [1, 2, 3, 4]
    assert_same(tmp_path / "killed", straight)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_a_checkpoint_and_the_same_command_resumes(
    signum: signal.Signals, array_file: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    run = parsed(array_file, tmp_path, "stopped", "--checkpoint.every-steps", "100")
    with monkeypatch.context() as patch:
        interrupted(patch, 2, lambda: os.kill(os.getpid(), signum))
        with pytest.raises(
            Stopped, match=f"stopped by {signum.name} after step 3, whose checkpoint is written; the same"
        ):
            train_on_one_device(run)
    # Handlers are those of before, or the next test could not be interrupted.
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint_*")] == ["checkpoint_000000003"]
    assert train_on_one_device(run) == 0
    assert_same(tmp_path / "stopped", straight)


def test_a_changed_experiment_or_other_data_are_refused(straight: Path, array_file: Path, shards: Path) -> None:
    storage, before = straight.parent, sorted(straight.rglob("*"))
    for more, message in (
        (("--optim.learning-rate", "0.5"), r"got changed fields optim\.learning_rate: 0\.0015 -> 0\.5"),
        (("--train.batch-size", "8"), r"changed fields train\.batch_size: 4 -> 8"),
        (("--data", str(shards)), "changed fields data_fingerprint"),
    ):
        with pytest.raises(UserError, match=message):
            train_on_one_device(parsed(array_file, storage, "straight", *more))
    assert sorted(straight.rglob("*")) == before


@pytest.mark.slow
def test_a_run_starts_from_the_checkpoint_of_another(straight: Path, array_file: Path, tmp_path: Path) -> None:
    start = str(straight / "checkpoint_000000002")
    run = parsed(array_file, tmp_path, "branch", "--start-from", start, "--optim.learning-rate", "0.001")
    assert train_on_one_device(run) == 0
    assert logged(tmp_path / "branch") == [3, 4]
    assert json.loads((tmp_path / "branch" / "experiment.json").read_text())["start_from"] == start


def test_a_run_that_diverges_ends_with_status_1(
    array_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create = TrainState.create

    def broken(*args: Any, **more: Any) -> TrainState:
        state = create(*args, **more)
        with torch.no_grad():
            state.network.head.bias[0] = torch.inf
        return state

    monkeypatch.setattr(train_single_device.TrainState, "create", broken)
    assert train_on_one_device(parsed(array_file, tmp_path, "bad", "--tracking.num-samples", "1")) == 1
    assert "training diverged at step 0" in capsys.readouterr().err
    assert not list((tmp_path / "bad").glob("checkpoint_*"))


@pytest.mark.slow
def test_scores_are_logged_with_the_other_numbers(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def scorer(features: str, index: object, num_images: int, device: torch.device) -> Any:
        return lambda images: seen.append(len(images)) or {"score/fid": 2.5}

    monkeypatch.setattr("drl_dist.evaluation.scores.image_scorer", scorer)
    more = ("--tracking.score-every-steps", "2", "--tracking.score-num-images", "10")
    assert train_on_one_device(parsed(shards, tmp_path, "scored", *more)) == 0
    assert seen == [10, 10]
    scores = histories(read_table(str(tmp_path / "scored"), ["score/fid"]))
    assert scores["score/fid"].values == {2: 2.5, 4: 2.5}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--num-workers", "2"),
            r"num_workers with --without-ray: got 2, expected 1; correct the field, or train with",
        ),
        (("--num-workers", "1:1"), r"min_workers with --without-ray: got 1, expected none"),
        (("--max-rollbacks", "1"), r"max_rollbacks with --without-ray: got 1"),
        (("--loader.on-damage", "substitute"), r"on_damage with --without-ray: got substitute, expected strict"),
        (
            ("--storage", "gs://bucket/runs"),
            r"storage with --without-ray: got gs://bucket/runs, expected a folder of this",
        ),
        (
            ("--loader.ledger-dir", "/audit"),
            r"ledger_dir with --without-ray: got /audit, expected none, for images in one",
        ),
        (("--tracking.score-every-steps", "2"), r"score_every_steps with --without-ray: got 2, expected none"),
    ],
)
def test_what_needs_ray_is_told_with_the_options(more: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parsed(Path("/data/images.npy"), Path("/runs"), "a", *more)
    assert "\n" not in str(caught.value)


def test_a_folder_of_something_else_is_left_alone(array_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "samples.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"got samples\.png of something else, without experiment\.json"):
        train_on_one_device(parsed(array_file, tmp_path, "a"))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["samples.png"]


def test_array_files_that_are_no_images_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "images.npy"
    with pytest.raises(UserError, match=r"images\.npy: got No such file or directory, expected images that numpy"):
        read_array_file(str(place))
    for array, got in (
        (np.zeros((2, 1, 8, 8)), r"float64 \(2, 1, 8, 8\)"),
        (np.zeros((2, 8, 8), np.uint8), r"uint8 \(2, 8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"uint8 \(2, 8, 8, 3\)"),
        (np.zeros((0, 1, 8, 8), np.uint8), r"uint8 \(0, 1, 8, 8\)"),
        (np.array([{}]), "Object arrays cannot be loaded"),
    ):
        np.save(place, array)
        with pytest.raises(UserError, match=f"got {got}"):
            read_array_file(str(place))
    place.write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"images\.npy: got "):
        read_array_file(str(place))
    with place.open("wb") as file:
        np.savez(file, images=np.zeros((2, 1, 8, 8), np.uint8))
    with pytest.raises(UserError, match="got several arrays"):
        read_array_file(str(place))
    np.save(place, np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(UserError, match=r"got images of shape \(3, 8, 8\), expected \(1, 8, 8\), as the model has"):
        train_on_one_device(parsed(place, tmp_path, "a"))
    assert not (tmp_path / "a").exists()


def test_batches_in_memory_see_each_image_once_a_pass_whatever_the_start() -> None:
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).expand(10, 1, 2, 2).contiguous()

    def values(start: int, count: int, **more: Any) -> list[int]:
        source = iter(InMemoryBatches(images, seed=3, batch_size=4, start_position=start, **more))
        batches = [next(source) for _ in range(count)]
        assert torch.cat([one.positions for one in batches]).tolist() == list(range(start, start + 4 * count))
        return torch.cat([one.images for one in batches])[:, 0, 0, 0].tolist()

    seen = values(0, 10)
    passes = [seen[number : number + 10] for number in range(0, 40, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4
    assert values(12, 7) == seen[12:]
    left = images.clone()
    left[..., 1] = 100
    source = iter(InMemoryBatches(left, seed=3, batch_size=400, horizontal_flip=True))
    mirrored = (next(source).images[:, 0, 0, 0] == 100).double().mean()
    assert 0.4 < float(mirrored) < 0.6
    with pytest.raises(ValueError, match=r"float32 \(10, 1, 2, 2\) is not uint8"):
        InMemoryBatches(images.float(), seed=0, batch_size=1)


def test_fields_that_ray_alone_reads_change_nothing(straight: Path, array_file: Path) -> None:
    run = dataclasses.replace(parsed(array_file, straight.parent, "straight"), cpus_per_worker=3)
    assert train_on_one_device(run) == 0


@pytest.mark.slow
def test_a_run_goes_on_with_another_way_of_fitting_into_memory(
    straight: Path, array_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sliced = ("--engine.memory", "slices", "--engine.chain-images", "3", "--engine.update-images", "1")
    assert train_on_one_device(parsed(array_file, tmp_path, "two", *sliced, "--train.num-steps", "2")) == 0
    assert train_on_one_device(parsed(array_file, tmp_path, "two", "--engine.memory-gib", "1")) == 0
    assert re.search(r"run two: memory: all at once, \d+ MiB of 870 MiB for tensors\n", capsys.readouterr().out)
    for name, value in tensors(straight)["weights"].items():
        torch.testing.assert_close(tensors(tmp_path / "two")["weights"][name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_a_run_that_fits_into_no_memory_writes_nothing(array_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine.memory: got auto with 1 MiB for tensors, expected at least"):
        train_on_one_device(parsed(array_file, tmp_path, "none", "--engine.memory-gib", "0.0001"))
    assert list(tmp_path.iterdir()) == []
