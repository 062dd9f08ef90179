"""Checkpoint folders: exact round trips, and every kind of damage told by file name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drl_dist.checkpoints.configs import config_from_dict
from drl_dist.checkpoints.format import PARTS, CheckpointState, part_file, read_checkpoint, write_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.common.nested import to_dict
from drl_dist.config.presets import TABLE_6, preset
from drl_dist.config.tree import Experiment, RunConfig

STATE = CheckpointState(step=7, images_seen=448, next_position=448, seed=3, data_fingerprint="f00d", world_size=2)


def some_tensors() -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    convolution = torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    tensors = {
        "conv.weight": convolution,
        "odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "step": torch.tensor(7, dtype=torch.int64),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "empty": torch.empty(0, 3),
    }
    return {part: {name: tensor.clone() for name, tensor in tensors.items()} for part in PARTS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint", some_tensors(), STATE, preset("digits"))
    return tmp_path / "checkpoint"


def test_round_trip_is_exact(folder: Path) -> None:
    checkpoint = read_checkpoint(folder, PARTS)
    assert checkpoint.state == STATE
    assert checkpoint.experiment == preset("digits")
    for part, tensors in some_tensors().items():
        assert checkpoint.tensors[part].keys() == tensors.keys()
        for name, tensor in tensors.items():
            loaded = checkpoint.tensors[part][name]
            assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
            # Bytes, so that NaN equals NaN and -0.0 differs from 0.0.
            assert (
                loaded.contiguous().reshape(-1).view(torch.uint8).tolist()
                == tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
            )


def test_tensors_come_in_one_order(tmp_path: Path) -> None:
    # Ranks that gather them one after the other must not gather unlike ones; safetensors shuffles what it reads.
    many = {part: {f"layer{number:02}": torch.zeros(2) for number in range(40)} for part in PARTS}
    write_checkpoint(tmp_path / "checkpoint", many, STATE, preset("digits"))
    for tensors in read_checkpoint(tmp_path / "checkpoint", PARTS).tensors.values():
        assert list(tensors) == sorted(tensors)


def test_only_what_is_asked_for_need_be_there(folder: Path) -> None:
    (folder / part_file("weights")).unlink()
    (folder / part_file("optimizer")).unlink()
    assert read_checkpoint(folder, ("ema",)).tensors.keys() == {"ema"}
    with pytest.raises(UserError, match=r"weights\.safetensors: got no file"):
        read_checkpoint(folder, PARTS)


@pytest.mark.parametrize("name", ["ema.safetensors", "config.json", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "bit", "missing", "longer"])
def test_damage_is_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[:-1] if damage == "truncated" else content + b"\n")
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as caught:
        read_checkpoint(folder)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"ema.safetensors": 3}', b"{}"])
def test_torn_checksums_are_refused(folder: Path, content: bytes) -> None:
    (folder / "checksums.json").write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        read_checkpoint(folder)


def test_without_checksums_it_is_unfinished(folder: Path, tmp_path: Path) -> None:
    (folder / "checksums.json").unlink()
    with pytest.raises(UserError, match="expected a complete checkpoint folder"):
        read_checkpoint(folder)
    with pytest.raises(UserError, match="expected a complete checkpoint folder"):
        read_checkpoint(tmp_path / "nowhere")


def test_a_copy_reads_the_same(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert read_checkpoint(tmp_path / "copy").state == STATE


def test_no_pickle_in_the_folder(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "checksums.json",
        "config.json",
        "ema.safetensors",
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]


@pytest.mark.parametrize("name", TABLE_6)
def test_config_survives_json(name: str) -> None:
    run = RunConfig(experiment=preset(name), data="/data", run_name=name, storage="gs://bucket/x")
    stored = json.loads(json.dumps(to_dict(run)))
    assert config_from_dict(RunConfig, stored, source="test") == run
    assert config_from_dict(Experiment, stored["experiment"], source="test") == run.experiment


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("model", "widht", 8, r"model\.widht"),
        ("model", "width", "8", r"model\.width: got '8'"),
        ("model", "head", "linear", r"model\.head: got 'linear'"),
        ("optim", "beta1", 2.0, r"optim\.beta1: got 2\.0"),
        ("train", "num_steps", 1.5, r"train\.num_steps: got 1\.5"),
    ],
)
def test_strange_configs_are_refused(section: str, field: str, value: object, message: str) -> None:
    stored = to_dict(preset("digits"))
    stored[section][field] = value
    with pytest.raises(UserError, match=message):
        config_from_dict(Experiment, stored, source="test")
