"""Images with classes and attributes, and untrained networks whose labels matter, for tests of labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from drl_dist.checkpoints.format import CheckpointState, write_checkpoint
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.tree import Experiment
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ATTRIBUTE_COUNTS, ATTRIBUTES, CLASS_COUNTS, CLASSES, ShardIndex, write_index
from drl_dist.data.shards import Sample, encode_png, pack_shard, shard_name
from drl_dist.training.state import TrainState
from tests.data.sets import pixels_of
from tests.helpers.steps import tiny_unet, waken

NAMES = ("ant", "bee", "cow")


def class_of(number: int) -> int:
    return -1 if number % 7 == 6 else number % 3


def attributes_of(number: int) -> list[int]:
    return [1 if number % 2 else -1, number % 3 - 1, 1 if number % 5 < 2 else -1]


def write_images(
    folder: Path, numbers: range, names: tuple[str, ...] = NAMES, made_by: dict[str, Any] | None = None
) -> None:
    """Two shards of labelled noise."""
    rows: list[Any] = []
    for shard, part in enumerate((numbers[:9], numbers[9:])):
        samples: list[Sample] = []
        for number in part:
            facts: dict[str, Any] = {"attributes": attributes_of(number)}
            if class_of(number) >= 0:
                facts["label"] = class_of(number)
            samples.append(Sample(number, encode_png(pixels_of(number)), facts))
        data, row = pack_shard(shard_name("toy", "test", shard), samples)
        Folder(str(folder)).write(row.name, data)
        rows.append(row)
    known = [class_of(number) for number in numbers]
    true = [sum(attributes_of(number)[place] == 1 for number in numbers) for place in range(3)]
    if made_by is None:
        made_by = {
            CLASSES: list(names),
            CLASS_COUNTS: [known.count(label) for label in range(3)],
            ATTRIBUTES: list(names),
            ATTRIBUTE_COUNTS: true,
        }
    write_index(
        ShardIndex(
            url=str(folder),
            name="toy",
            split="test",
            resolution=8,
            channels=1,
            shards=tuple(rows),
            made_by=made_by,
        )
    )


def write_model(folder: Path, kind: Any, names: tuple[str, ...] = NAMES) -> Experiment:
    """A checkpoint of an untrained network whose labels matter."""
    condition = ConditionConfig(kind=kind, names=names if kind != "none" else ())
    experiment = dataclasses.replace(tiny_unet(), condition=condition)
    state = TrainState.create(experiment)
    waken(state)
    parts = state.tensors()
    if kind != "none":
        table = 2 * torch.randn(parts["ema"]["condition.table"].shape, generator=torch.Generator().manual_seed(4))
        parts["ema"]["condition.table"] = table
    facts = CheckpointState(step=7, images_seen=84, next_position=84, seed=0, data_fingerprint="0" * 64, world_size=1)
    write_checkpoint(folder, parts, facts, experiment)
    return experiment
