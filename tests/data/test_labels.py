"""Labels of shards: they follow their images, whatever the order, the ranks and the damage."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from drl_dist.common.batch import Batch
from drl_dist.common.errors import UserError
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.presets import preset
from drl_dist.config.tree import LoaderConfig
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ATTRIBUTE_COUNTS, ATTRIBUTES, CLASS_COUNTS, CLASSES, ShardIndex, open_index, write_index
from drl_dist.data.labels import labelled_by
from drl_dist.data.shards import Sample, ShardRow, encode_png, pack_shard, shard_name
from drl_dist.data.stream import ShardStream
from drl_dist.data.subset import image_batches, labelled_batches
from drl_dist.training.in_memory import InMemoryBatches
from tests.data.sets import pixels_of, rewritten, sample_ids

NAMES = ("ant", "bee", "cow")
COUNTS = (16, 16, 5)


def facts_of(number: int) -> dict[str, Any] | None:
    """Every seventh sample has no label; of attributes, some are unknown."""
    if number % 7 == 6:
        return None
    return {"label": number % 3, "attributes": [1 if number % 2 else -1, number % 3 - 1, 0]}


def class_of(number: int) -> int:
    return -1 if number % 7 == 6 else number % 3


def attributes_of(number: int) -> list[int]:
    facts = facts_of(number)
    return [0, 0, 0] if facts is None else facts["attributes"]


def write_labelled(url: str, change: Any = None, made_by: dict[str, Any] | None = None) -> ShardIndex:
    rows: list[ShardRow] = []
    first = 0
    for number, count in enumerate(COUNTS):
        samples: list[Sample] = []
        for place in range(first, first + count):
            facts = facts_of(place)
            if change is not None:
                facts = change(place, facts)
            samples.append(Sample(place, encode_png(pixels_of(place)), facts))
        data, row = pack_shard(shard_name("toy", "train", number), samples)
        Folder(url).write(row.name, data)
        rows.append(row)
        first += count
    if made_by is None:
        known = [class_of(number) for number in range(first)]
        true = np.array([attributes_of(number) for number in range(first)]) == 1
        made_by = {
            CLASSES: list(NAMES),
            CLASS_COUNTS: [known.count(label) for label in range(3)],
            ATTRIBUTES: list(NAMES),
            ATTRIBUTE_COUNTS: true.sum(0).tolist(),
        }
    index = ShardIndex(
        url=url, name="toy", split="train", resolution=8, channels=1, shards=tuple(rows), made_by=made_by
    )
    write_index(index)
    return index


def take(count: int, index: ShardIndex, kind: str = "class", **options: Any) -> list[Batch]:
    with ShardStream(index, seed=3, **{"batch_size": 8, "labels": kind, **options}) as stream:
        return list(islice(stream, count))


@pytest.mark.parametrize(("kind", "of"), [("class", class_of), ("attributes", attributes_of)])
@pytest.mark.parametrize("decoded_mib", [0.0, 256.0])
def test_labels_follow_their_images(kind: str, of: Any, decoded_mib: float, tmp_path: Path) -> None:
    index = write_labelled(str(tmp_path))
    options = {"loader": LoaderConfig(window_shards=2, decoded_mib=decoded_mib)}
    whole = take(15, index, kind, **options)
    for batch in whole:
        assert batch.labels is not None
        assert batch.labels.tolist() == [of(number) for number in sample_ids(batch.images.numpy())]
    # The same from the middle on, and on any number of ranks.
    later = take(5, index, kind, start_position=8 * 10, **options)
    for before, after in zip(whole[10:], later, strict=True):
        assert before.labels is not None and after.labels is not None and torch.equal(before.labels, after.labels)
    shares = [take(15, index, kind, rank=rank, world_size=3, **options) for rank in range(3)]
    for step, batch in enumerate(whole):
        labels = [share[step].labels for share in shares]
        assert batch.labels is not None and all(mine is not None for mine in labels)
        assert torch.equal(torch.cat([mine for mine in labels if mine is not None]), batch.labels)


def test_images_are_the_same_with_labels_and_without(tmp_path: Path) -> None:
    index = write_labelled(str(tmp_path))
    for plain, labelled in zip(take(10, index, "none"), take(10, index), strict=True):
        assert plain.labels is None and torch.equal(plain.images, labelled.images)


def broken_label(place: int, facts: dict[str, Any] | None) -> dict[str, Any] | None:
    return {"label": 3, "attributes": [1, 1]} if place == 4 else facts


def test_a_substitute_brings_its_own_label(tmp_path: Path) -> None:
    index = write_labelled(str(tmp_path), broken_label)
    with ShardStream(
        index, seed=3, batch_size=8, labels="class", loader=LoaderConfig(on_damage="substitute")
    ) as stream:
        batches = list(islice(stream, 15))
        assert {one.sample for one in stream.substitutes} == {4}
    for batch in batches:
        assert batch.labels is not None
        assert batch.labels.tolist() == [class_of(number) for number in sample_ids(batch.images.numpy())]


@pytest.mark.parametrize(
    ("kind", "facts", "message"),
    [
        ("class", {"label": 3}, "got label 3, expected a number below 3"),
        ("class", {"label": -1}, "got label -1, expected a number below 3"),
        ("class", {"label": "bee"}, "got label bee, expected a number below 3"),
        ("class", {"label": True}, "got label True, expected a number below 3"),
        ("class", [2], r"got JSON that cannot be read \(a list\), expected a JSON object"),
        ("attributes", {"attributes": [1, 1]}, r"got attributes \[1, 1\], expected 3 numbers, each 1, -1 or 0"),
        ("attributes", {"attributes": [1, 2, 0]}, ".*expected 3 numbers, each 1, -1 or 0"),
        ("attributes", {"attributes": 1}, ".*expected 3 numbers, each 1, -1 or 0"),
    ],
)
def test_labels_that_cannot_be_are_damage(kind: str, facts: Any, message: str, tmp_path: Path) -> None:
    index = write_labelled(str(tmp_path), lambda place, old: facts if place == 4 else old)
    with pytest.raises(UserError, match=f"sample 4 of shard .*toy-train-00000.tar: {message}"):
        take(10, index, kind)


def test_plain_webdataset_reads_them(tmp_path: Path) -> None:
    write_labelled(str(tmp_path))
    shards = sorted(str(path) for path in tmp_path.glob("*.tar"))
    found = {
        int(sample["__key__"]): json.loads(sample["json"]).get("label", -1) if "json" in sample else -1
        for sample in webdataset.WebDataset(shards, shardshuffle=False)
    }
    assert found == {number: class_of(number) for number in range(sum(COUNTS))}


@pytest.mark.parametrize("kind", ["class", "attributes"])
def test_names_come_from_the_data(kind: Any, tmp_path: Path) -> None:
    index = write_labelled(str(tmp_path))
    assert open_index(str(tmp_path)).attributes == NAMES and sum(index.class_counts) == 32
    experiment = dataclasses.replace(preset("digits"), condition=ConditionConfig(kind=kind))
    named = labelled_by(experiment, index)
    assert named.condition.names == NAMES
    assert labelled_by(named, index) == named
    other = dataclasses.replace(experiment, condition=ConditionConfig(kind=kind, names=("bee", "ant", "cow")))
    with pytest.raises(
        UserError, match=r"got 3 names of .*: ant, bee, cow, expected the 3 of the model, in their order"
    ):
        labelled_by(other, index)
    assert labelled_by(preset("digits"), index) == preset("digits")


def test_data_without_labels_are_refused(tmp_path: Path) -> None:
    index = write_labelled(str(tmp_path), made_by={})
    experiment = dataclasses.replace(preset("digits"), condition=ConditionConfig(kind="class"))
    with pytest.raises(UserError, match=r"data .* \(toy\): got images without classes, expected classes with names"):
        labelled_by(experiment, index)
    assert take(3, index, "none")[0].labels is None


@pytest.mark.parametrize("field", [ATTRIBUTES, CLASSES])
def test_an_index_whose_labels_contradict_themselves_is_refused(field: str, tmp_path: Path) -> None:
    write_labelled(str(tmp_path))

    def change(metadata: dict[str, Any], _: Any) -> None:
        metadata["made_by"][field] = ["ant"]

    rewritten(tmp_path / "index.parquet", change)
    with pytest.raises(UserError, match=f"got {field} that do not fit their counts"):
        open_index(str(tmp_path))


def test_batches_in_memory_have_labels() -> None:
    images = torch.from_numpy(np.stack([pixels_of(number) for number in range(20)]))
    labels = torch.tensor([class_of(number) for number in range(20)])
    batches = InMemoryBatches(images, seed=0, batch_size=8, labels=labels)
    for batch in islice(batches, 10):
        assert batch.labels is not None
        assert batch.labels.tolist() == [class_of(number) for number in sample_ids(batch.images.numpy())]
    with pytest.raises(ValueError, match="19 labels for 20 images"):
        InMemoryBatches(images, seed=0, batch_size=8, labels=labels[:-1])


@pytest.mark.parametrize(("kind", "of"), [("class", class_of), ("attributes", attributes_of)])
def test_labelled_images_are_read_in_order(kind: Any, of: Any, tmp_path: Path) -> None:
    index = write_labelled(str(tmp_path))
    plain = torch.cat(list(image_batches(index, 20, 8)))
    batches = list(labelled_batches(index, 20, 8, kind))
    assert [len(batch.keys) for batch in batches] == [8, 8, 4]
    assert torch.equal(torch.cat([batch.images for batch in batches]), plain)
    for batch in batches:
        numbers = sample_ids(batch.images.numpy())
        assert batch.keys == [f"{number:09d}" for number in numbers]
        assert batch.labels.tolist() == [of(number) for number in numbers]
    (rest,) = labelled_batches(index, 20, 8, kind, first=16)
    assert rest.keys == batches[2].keys and torch.equal(rest.labels, batches[2].labels)
