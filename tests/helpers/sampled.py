"""Images that a sampling job makes of a tiny network with labels, in this process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset

from drl_dist.checkpoints.format import CheckpointState, read_checkpoint, write_checkpoint
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.tree import Experiment
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.jobs.sample.output import SampleOutput
from drl_dist.jobs.sample.task import SampleRequest, SampleTasks, TaskRecord
from drl_dist.training.state import TrainState
from tests.helpers.labelled import NAMES
from tests.helpers.steps import tiny_unet, waken


def make_model(folder: Path, kind: Any) -> Path:
    """A checkpoint whose energies differ between labels."""
    given = tiny_unet()
    experiment = dataclasses.replace(
        given,
        preset="tiny",
        condition=ConditionConfig(kind=kind, names=NAMES),
        mcmc=dataclasses.replace(given.mcmc, num_chain_steps=1),
    )
    state = TrainState.create(experiment)
    waken(state)
    with torch.no_grad():
        table = torch.randn(3, 16, generator=torch.Generator().manual_seed(5)) * 3
        state.ema.shadow["condition.table"].copy_(table)
    told = CheckpointState(step=3, images_seen=12, next_position=12, seed=0, data_fingerprint="0" * 64, world_size=1)
    write_checkpoint(folder, state.tensors(), told, experiment)
    return folder


def stored(checkpoint: Path) -> tuple[Experiment, dict[str, Any]]:
    found = read_checkpoint(checkpoint, ("ema",))
    return found.experiment, {name: value.numpy() for name, value in found.tensors["ema"].items()}


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


def finished(checkpoint: Path, out: Path, **asked: object) -> tuple[ShardIndex, bytes]:
    """All tasks in this process; the index and the grid."""
    experiment, ema = stored(checkpoint)
    wanted = request(**asked)
    output = SampleOutput(str(out), experiment, wanted)
    assert not output.is_complete()
    output.begin({})
    records: dict[int, TaskRecord] = {}
    tasks = SampleTasks(experiment, ema, wanted, str(out))
    for task in reversed(range(wanted.num_tasks)):
        *_, record = tasks.make(task)
        assert isinstance(record, TaskRecord)
        records[task] = record
    output.write_manifest(records, {})
    index = output.index(records)
    grid = output.write_grid(index, None, "caption")
    output.finish(index)
    assert SampleOutput(str(out), experiment, wanted).is_complete()
    return open_index(str(out)), grid


def pixels(folder: Path) -> dict[int, np.ndarray]:
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    found = webdataset.WebDataset(shards, shardshuffle=False).decode("pil")
    return {int(entry["__key__"]): np.asarray(entry["png"].convert("L")) for entry in found}


def facts(folder: Path) -> dict[int, Any]:
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    found = webdataset.WebDataset(shards, shardshuffle=False)
    return {int(one["__key__"]): json.loads(one["json"]) if "json" in one else None for one in found}
