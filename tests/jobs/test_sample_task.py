"""One task of the sampling job: exactly what the sampler draws, and a record that counts for its own request."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from drl_dist.build import build_sampler
from drl_dist.checkpoints.format import read_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.common.images import MIN_WIDTH, PROGRESSION_TITLE, to_uint8
from drl_dist.common.progress import UnderWay
from drl_dist.config.tree import EngineConfig
from drl_dist.data.index import ShardIndex, write_index
from drl_dist.data.shards import Sample, encode_png, pack_shard
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.common.output.sheet import images_in
from drl_dist.jobs.sample import task as sample_task
from drl_dist.jobs.sample.output import SampleOutput
from drl_dist.jobs.sample.task import SampleTasks, TaskRecord, facts_of, progression
from drl_dist.training.chain import GradientEngine
from drl_dist.training.ema import load_averaged
from drl_dist.training.state import TrainState
from tests.helpers.sampled import request
from tests.helpers.steps import tiny


@pytest.mark.slow
def test_a_unit_is_what_the_sampler_draws_from_the_averaged_weights(checkpoint: Path, tmp_path: Path) -> None:
    stored = read_checkpoint(checkpoint, ("ema",))
    experiment, ema = stored.experiment, {name: value.numpy() for name, value in stored.tensors["ema"].items()}
    wanted = request()
    *parts, record = SampleTasks(experiment, ema, wanted, str(tmp_path)).make(1)
    counts = [part for part in parts if not isinstance(part, UnderWay)]
    assert counts == [3, 1]
    assert isinstance(record, TaskRecord)

    state = TrainState.create(experiment)
    engine = GradientEngine(load_averaged(state.network, stored.tensors["ema"]), EngineConfig())
    noise = PhiloxNoise(wanted.seed)
    expected = [
        to_uint8(build_sampler(experiment).sample(engine.raw_at, noise, ids, (1, 8, 8)))
        for ids in (torch.tensor([4, 5, 6]), torch.tensor([7]))
    ]
    [*found] = webdataset.WebDataset([str(tmp_path / record.row.name)], shardshuffle=False).decode("pil")
    assert [entry["__key__"] for entry in found] == [f"{image:09d}" for image in (4, 5, 6, 7)]
    pixels = np.stack([np.asarray(entry["png"].convert("L")) for entry in found])
    np.testing.assert_array_equal(pixels, torch.cat(expected)[:, 0].numpy())

    # Another worker that made other tasks before makes the same bytes.
    before = (tmp_path / record.row.name).read_bytes()
    busy = SampleTasks(experiment, ema, wanted, str(tmp_path))
    for task in (2, 0, 1):
        list(busy.make(task))
    assert (tmp_path / record.row.name).read_bytes() == before
    quieter = request(noise_scale=0.0)
    list(SampleTasks(experiment, ema, quieter, str(tmp_path)).make(1))
    assert (tmp_path / record.row.name).read_bytes() != before


def test_a_batch_says_how_far_it_is(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = read_checkpoint(checkpoint, ("ema",))
    ema = {name: value.numpy() for name, value in stored.tensors["ema"].items()}
    tasks, num_levels = SampleTasks(stored.experiment, ema, request(num_chain_steps=1), str(tmp_path)), 6
    # At most once a second.
    assert sum(isinstance(part, UnderWay) for part in tasks.make(1)) < 2 * num_levels
    monkeypatch.setattr(sample_task, "TELL_SECONDS", 0.0)
    *parts, _ = tasks.make(1)
    first = [UnderWay(3 * made / num_levels, f"images 4 to 6 at noise level {6 - made} of 6") for made in range(6)]
    last = [UnderWay(made / num_levels, f"images 7 to 7 at noise level {6 - made} of 6") for made in range(6)]
    assert parts == [*first, 3, *last, 1]


def test_weights_that_diverged_are_no_images(checkpoint: Path, tmp_path: Path) -> None:
    stored = read_checkpoint(checkpoint, ("ema",))
    ema = {name: np.full_like(value.numpy(), np.nan) for name, value in stored.tensors["ema"].items()}
    with pytest.raises(UserError, match="generated images 0 to 2: got values that are not finite"):
        list(SampleTasks(stored.experiment, ema, request(), str(tmp_path)).make(0))
    assert list(tmp_path.iterdir()) == []


def test_a_record_counts_for_its_own_request_only() -> None:
    _, row = pack_shard("tiny-generated-00000.tar", [Sample(0, b"png"), Sample(1, b"other")])
    record = TaskRecord(row, *facts_of([b"png", b"other"]), "cpu", 1.5)
    text = record.to_json(request())
    back = TaskRecord.from_json(text, request())
    assert back is not None
    assert (back.row.name, back.row.offsets.tolist()) == (row.name, row.offsets.tolist())
    assert (back.png_sizes.tolist(), back.png_sha256, back.device, back.seconds) == (
        [3, 5],
        record.png_sha256,
        "cpu",
        1.5,
    )
    assert back.checksums() == [hashlib.sha256(png).hexdigest() for png in (b"png", b"other")]
    # As earlier versions wrote it.
    assert json.loads(text)["png_sizes"] == [3, 5] and json.loads(text)["png_sha256"] == back.checksums()
    assert text.startswith(TaskRecord.head(request()))
    assert TaskRecord.from_json(text.replace(back.checksums()[0].encode(), b"damaged"), request()) is None
    assert TaskRecord.from_json(text, request(seed=4)) is None
    # A request stays itself once its digests are known.
    asked = request()
    before = asked.to_record()
    assert asked.task_digest != asked.digest and asked.to_record() == before


@pytest.mark.slow
def test_chains_that_were_asked_for_are_run(checkpoint: Path, tmp_path: Path) -> None:
    stored = read_checkpoint(checkpoint, ("ema",))
    ema = {name: value.numpy() for name, value in stored.tensors["ema"].items()}
    mcmc = dataclasses.replace(stored.experiment.mcmc, step_rule="bound")
    experiment = dataclasses.replace(stored.experiment, mcmc=mcmc)
    asked = request(num_chain_steps=2, bound_fraction=1.2, chain_kernel="leimkuhler_matthews")
    list(SampleTasks(experiment, ema, asked, str(tmp_path / "asked")).make(0))
    fields = {"sampling_chain_steps": 2, "sampling_bound_fraction": 1.2, "sampling_kernel": "leimkuhler_matthews"}
    own = dataclasses.replace(mcmc, **fields)
    list(SampleTasks(dataclasses.replace(experiment, mcmc=own), ema, request(), str(tmp_path / "own")).make(0))
    list(SampleTasks(experiment, ema, request(), str(tmp_path / "trained")).make(0))
    made, wanted, others = ((tmp_path / name / "tiny-generated-00000.tar").read_bytes() for name in NAMES)
    assert made == wanted != others


NAMES = ("asked", "own", "trained")


def test_requests_without_chains_of_their_own_are_those_of_earlier_versions() -> None:
    assert request().digest == "8fcfe6e84b85e7b9d280bf3e645b208f2624606337addb73e58b5fd7d841b326"
    assert not {"num_chain_steps", "bound_fraction"} & set(request().to_record())
    assert len({request(**asked).digest for asked in ({}, {"num_chain_steps": 0}, {"bound_fraction": 0.9})}) == 3


@pytest.mark.slow
def test_bfloat16_is_another_request_and_makes_nearly_the_same_images(checkpoint: Path, tmp_path: Path) -> None:
    stored = read_checkpoint(checkpoint, ("ema",))
    ema = {name: value.numpy() for name, value in stored.tensors["ema"].items()}
    pixels = []
    for precision in ("float32", "bfloat16"):
        *_, record = SampleTasks(stored.experiment, ema, request(precision=precision), str(tmp_path)).make(0)
        assert isinstance(record, TaskRecord)
        found = webdataset.WebDataset([str(tmp_path / record.row.name)], shardshuffle=False).decode("pil")
        pixels.append(np.stack([np.asarray(entry["png"].convert("L"), dtype=float) for entry in found]))
    difference = np.abs(pixels[0] - pixels[1])
    assert difference.max() > 0
    assert difference.mean() < 4
    assert request().digest != request(precision="bfloat16").digest


def test_a_folder_that_cannot_be_written_is_told(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    output = SampleOutput(str(tmp_path / "file" / "out"), read_checkpoint(checkpoint).experiment, request())
    with pytest.raises(UserError, match=r"got a file at .*/file, expected a folder, or room for one"):
        output.is_complete()


def _shards(folder: Path, pixels: np.ndarray, split: str) -> ShardIndex:
    """One shard of uint8 (N, 1, 8, 8) images."""
    folder.mkdir()
    samples = (Sample(number, encode_png(image)) for number, image in enumerate(pixels))
    data, row = pack_shard(f"tiny-{split}-00000.tar", samples)
    (folder / row.name).write_bytes(data)
    index = ShardIndex(url=str(folder), name="tiny", split=split, resolution=8, channels=1, shards=(row,))
    write_index(index)
    return index


def test_the_grid_shows_real_images_of_all_classes_and_says_which_they_are(tmp_path: Path) -> None:
    # Two classes, as folders are: all of the first, then all of the second.
    real = np.repeat(np.array([10, 200], np.uint8), 50)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    generated = np.full((70, 1, 8, 8), 77, np.uint8)
    output = SampleOutput(str(tmp_path / "out"), tiny(), request(num_images=70))
    shown, from_data = _shards(tmp_path / "made", generated, "generated"), _shards(tmp_path / "real", real, "train")
    picture = output.write_grid(shown, from_data, "models:/tiny@latest, step 3, seed 3, 70 images")
    assert (tmp_path / "out" / "grid.png").read_bytes() == picture
    with Image.open(io.BytesIO(picture)) as opened:
        found = images_in(opened)
        assert opened.width >= MIN_WIDTH
        assert opened.info["Description"] == "models:/tiny@latest, step 3, seed 3, 70 images"
    assert found is not None and list(found) == ["generated", "real: tiny train"]
    assert set(found["generated"].flatten().tolist()) == {77} and len(found["generated"]) == 64
    values = found["real: tiny train"][:, 0, 0, 0].tolist()
    assert values == sorted(values) and [values.count(value) for value in (10, 200)] == [32, 32]


def test_the_way_from_noise_says_what_it_is_of() -> None:
    with Image.open(io.BytesIO(progression(torch.zeros(5, 3, 1, 8, 8), "a model, step 3, seed 3"))) as picture:
        found = images_in(picture)
        assert picture.width >= MIN_WIDTH and picture.info["Description"] == "a model, step 3, seed 3"
    assert found is not None and found[PROGRESSION_TITLE].shape == (15, 1, 8, 8)
