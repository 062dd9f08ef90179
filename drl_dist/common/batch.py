"""`Batch`, the images of one training step, and `BatchSource`, the interface between data and the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """This rank's images of one training step."""

    images: Tensor
    """(B, C, H, W) uint8."""
    positions: Tensor
    """(B,) int64, each image's position in the global stream of samples; keys all of its noise."""
    bad_samples: int = 0
    """Number of images that replace damaged ones."""
    labels: Tensor | None = None
    """(B,) int64 numbers of classes, -1 for none, or (B, size) int8 of attributes, 1 for true, -1 for false and 0 for
    unknown; None from data that are read without labels."""


class BatchSource(Protocol):
    """An endless iterable of batches, from a start position onwards."""

    def __iter__(self) -> Iterator[Batch]: ...
