"""One task of the sampling job: exactly what the sampler draws, and a record that counts for its own request."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from drl_dist.build import build_sampler
from drl_dist.checkpoints.format import read_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_uint8
from drl_dist.config.tree import EngineConfig
from drl_dist.data.shards import Sample, pack_shard
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.sample.output import SampleOutput
from drl_dist.jobs.sample.task import SampleRequest, SampleTasks, TaskRecord
from drl_dist.training.chain import GradientEngine
from drl_dist.training.ema import load_averaged
from drl_dist.training.state import TrainState


def request(**changed: object) -> SampleRequest:
    fields = {
        "preset": "tiny",
        "ema_sha256": "e",
        "config_sha256": "c",
        "num_images": 10,
        "seed": 3,
        "noise_scale": 0.99,
        "shard_size": 4,
        "batch_size": 3,
        "device": "cpu",
        "threads": 1,
    }
    return SampleRequest(**fields | changed)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_a_unit_is_what_the_sampler_draws_from_the_averaged_weights(checkpoint: Path, tmp_path: Path) -> None:
    stored = read_checkpoint(checkpoint, ("ema",))
    experiment, ema = stored.experiment, {name: value.numpy() for name, value in stored.tensors["ema"].items()}
    wanted = request()
    *counts, record = SampleTasks(experiment, ema, wanted, str(tmp_path)).make(1)
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


def test_weights_that_diverged_are_no_images(checkpoint: Path, tmp_path: Path) -> None:
    stored = read_checkpoint(checkpoint, ("ema",))
    ema = {name: np.full_like(value.numpy(), np.nan) for name, value in stored.tensors["ema"].items()}
    with pytest.raises(UserError, match="generated images 0 to 2: got values that are not finite"):
        list(SampleTasks(stored.experiment, ema, request(), str(tmp_path)).make(0))
    assert list(tmp_path.iterdir()) == []


def test_a_record_counts_for_its_own_request_only() -> None:
    _, row = pack_shard("tiny-generated-00000.tar", [Sample(0, b"png"), Sample(1, b"other")])
    record = TaskRecord(row, (3, 5), ("a", "b"), "cpu", 1.5)
    text = record.to_json(request())
    back = TaskRecord.from_json(text, request())
    assert back is not None
    assert (back.row.name, back.row.offsets.tolist()) == (row.name, row.offsets.tolist())
    assert (back.png_sizes, back.png_sha256, back.device, back.seconds) == ((3, 5), ("a", "b"), "cpu", 1.5)
    assert TaskRecord.from_json(text, request(seed=4)) is None


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
