"""Selection of images from a shard folder: evenly spread or by position, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.config.condition import ConditionKind
from drl_dist.data.cache import OpenShard, ShardCache
from drl_dist.data.decode import read_image, read_label, read_named
from drl_dist.data.index import ShardIndex

Read = TypeVar("Read")

_KEY_SHOWN = 0x73686F776E  # "shown"


def check_count(index: ShardIndex, count: int, *, what: str, option: str) -> None:
    """Return if a data set has at least `count` images.

    Args:
        what: description of the images, for the message.
        option: that says how many, for the message.

    Raises:
        UserError: it has fewer: scores of different numbers of images cannot be compared.
    """
    if index.num_samples < count:
        raise UserError(
            f"{what} {index.url}",
            got=counted(index.num_samples, "image"),
            expected=f"at least {count}",
            remedy=f"add images, or give a smaller {option}, the same one wherever results are compared",
        )


def spread(num_samples: int, count: int) -> NDArray[np.int64]:
    """`count` of the numbers 0 to num_samples - 1, evenly spread and increasing.

    The first images would not be representative, because data sets may be ordered by class.
    """
    return np.arange(count, dtype=np.int64) * num_samples // count


def representative(num_samples: int, count: int) -> NDArray[np.int64]:
    """`count` of the numbers 0 to num_samples - 1, increasing and always the same: one drawn from each of equal ranges.

    As `spread`, they show every class of data that are ordered by class; and where classes take turns, as those of
    scikit-learn's digits do, no fixed distance falls on the same class again and again.
    """
    bounds = np.arange(count + 1, dtype=np.int64) * num_samples // count
    # Raw Philox words are stable across numpy versions; Generator methods may change between them.
    words = np.random.Philox(key=[0, _KEY_SHOWN]).random_raw(count)
    return bounds[:-1] + (words % np.diff(bounds).astype(np.uint64)).astype(np.int64)


def image_batches(
    index: ShardIndex, count: int, batch_size: int, *, cache: ShardCache | None = None, first: int = 0
) -> Iterator[Tensor]:
    """`count` images of a data set, evenly spread over it, in the order of its shards.

    Args:
        index: the data set.
        count: images in all.
        batch_size: images of a batch.
        cache: cache through which shards are read.
        first: number of images to skip at the beginning.

    Yields:
        uint8 (B, C, H, W), B = `batch_size` except in the last batch.

    Raises:
        UserError: a shard or an image is damaged or cannot be read.
    """
    wanted = spread(index.num_samples, count)[first:]
    for batch in _batches(_read(index, wanted, cache or ShardCache(index.url), read_image), batch_size):
        yield torch.from_numpy(np.stack(batch))


class LabelledImages(NamedTuple):
    """A batch of images that know their names and labels."""

    keys: list[str]
    """Names of the samples in their shards, nine digits each."""
    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """As `drl_dist.common.batch.Batch.labels`."""


def labelled_batches(
    index: ShardIndex,
    count: int,
    batch_size: int,
    kind: ConditionKind,
    *,
    cache: ShardCache | None = None,
    first: int = 0,
) -> Iterator[LabelledImages]:
    """The images of `image_batches`, with their labels.

    Args:
        index, count, batch_size, cache, first: as of `image_batches`.
        kind: of the labels, "class" or "attributes".

    Raises:
        UserError: as `image_batches`; or a label is none of the index.
    """

    def read(shard: OpenShard, sample: int, index: ShardIndex) -> tuple[str, NDArray[np.uint8], NDArray[Any]]:
        return read_named(shard, sample, index, kind)

    wanted = spread(index.num_samples, count)[first:]
    for batch in _batches(_read(index, wanted, cache or ShardCache(index.url), read), batch_size):
        keys, images, labels = zip(*batch, strict=True)
        yield LabelledImages(list(keys), torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)))


def labels_of(index: ShardIndex, count: int, kind: ConditionKind, *, cache: ShardCache | None = None) -> Tensor:
    """The labels of the images of `image_batches`, in their order, as `drl_dist.common.batch.Batch.labels`.

    Args:
        index, count, cache: as of `image_batches`.
        kind: of the labels, "class" or "attributes".

    Raises:
        UserError: as `labels_at`.
    """
    return labels_at(index, spread(index.num_samples, count), kind, cache=cache)


def labels_at(
    index: ShardIndex, places: NDArray[np.int64], kind: ConditionKind, *, cache: ShardCache | None = None
) -> Tensor:
    """The labels at the given positions of a data set, as `drl_dist.common.batch.Batch.labels`.

    Args:
        places: increasing numbers in [0, index.num_samples).
        kind: of the labels, "class" or "attributes".

    Raises:
        UserError: a shard or a sample is damaged or cannot be read, or a label is none of the index.
    """

    def read(shard: OpenShard, sample: int, index: ShardIndex) -> NDArray[Any]:
        return read_label(shard, sample, index, kind)

    return torch.from_numpy(np.stack(list(_read(index, places, cache or ShardCache(index.url), read))))


def images_at(index: ShardIndex, places: NDArray[np.int64], *, cache: ShardCache | None = None) -> Tensor:
    """The images at the given positions of a data set, uint8 (B, C, H, W).

    Args:
        places: increasing numbers in [0, index.num_samples).

    Raises:
        UserError: a shard or an image is damaged or cannot be read.
    """
    return torch.from_numpy(np.stack(list(_read(index, places, cache or ShardCache(index.url), read_image))))


def _batches(items: Iterator[Read], size: int) -> Iterator[list[Read]]:
    while batch := list(islice(items, size)):
        yield batch


def _read(
    index: ShardIndex,
    wanted: NDArray[np.int64],
    cache: ShardCache,
    read: Callable[[OpenShard, int, ShardIndex], Read],
) -> Iterator[Read]:
    ends = np.cumsum([row.num_samples for row in index.shards])
    shards, firsts = np.unique(np.searchsorted(ends, wanted, side="right"), return_index=True)
    for number, inside in zip(shards.tolist(), np.split(wanted, firsts)[1:], strict=True):
        row = index.shards[number]
        shard = cache.open(row)
        try:
            for sample in inside - (ends[number] - row.num_samples):
                yield read(shard, int(sample), index)
        finally:
            shard.close()
