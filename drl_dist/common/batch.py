"""What the training loop asks of a data source."""

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
    """(B,) int64, each image's place in the global stream of samples; keys all of its noise."""
    bad_samples: int = 0
    """Images that stand in for damaged ones."""


class BatchSource(Protocol):
    """Batches from a start position onwards, without end."""

    def __iter__(self) -> Iterator[Batch]: ...
