"""Batches of images that fit into memory, for training without shards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drl_dist.common.batch import Batch


class InMemoryBatches:
    """An endless stream of the same images, in another order at each pass; seed and position decide which one comes.

    Args:
        images: (N, C, H, W) uint8, on the CPU.
        seed: keys the order and the mirroring, in [0, 2**63).
        batch_size: images per step.
        start_position: the first position of the stream; batch_size times the number of finished steps.
        horizontal_flip: mirror half of the images left to right.
        labels: of the images, as `Batch.labels`; None for batches without.

    Raises:
        ValueError: the images are none, or of another shape or dtype, or there are more or fewer labels.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        seed: int,
        batch_size: int,
        start_position: int = 0,
        horizontal_flip: bool = False,
        labels: Tensor | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or not len(images):
            raise ValueError(f"{images.dtype} {tuple(images.shape)} is not uint8 (N, C, H, W)")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"{len(labels)} labels for {len(images)} images")
        self._images, self._labels, self._seed, self._flip = images, labels, seed, horizontal_flip
        self._batch_size, self._start = batch_size, start_position
        self._passes: dict[int, tuple[Tensor, Tensor]] = {}

    def __iter__(self) -> Iterator[Batch]:
        position = self._start
        while True:
            positions = torch.arange(position, position + self._batch_size)
            numbers, places = positions // len(self._images), positions % len(self._images)
            parts = [self._some(int(number), places[numbers == number]) for number in numbers.unique()]
            images, labels = zip(*parts, strict=True)
            yield Batch(torch.cat(images), positions, labels=None if self._labels is None else torch.cat(labels))
            position += self._batch_size

    def _some(self, number: int, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images at these places of a pass, and their labels."""
        if number not in self._passes:
            # A batch reaches into the next pass at most where passes are long; short ones are quickly made again.
            self._passes = {number: self._layout(number)}
        order, is_mirrored = (values[places] for values in self._passes[number])
        images = self._images[order]
        labels = None if self._labels is None else self._labels[order]
        return torch.where(is_mirrored.reshape(-1, 1, 1, 1), images.flip(3), images), labels

    def _layout(self, number: int) -> tuple[Tensor, Tensor]:
        """Which image comes at each place of a pass, and whether it is mirrored, (N,) each."""
        # Raw Philox words, which numpy keeps the same for ever; its Generator methods may change between versions.
        words: NDArray[np.uint64] = np.random.Philox(key=[self._seed, number]).random_raw(2 * len(self._images))
        keys, coins = np.split(words, 2)
        is_mirrored = (coins >> np.uint64(63) == 1) & self._flip
        return torch.from_numpy(np.argsort(keys, kind="stable")), torch.from_numpy(is_mirrored)
