"""Labels as vectors, one number for each name, and what a network makes of them.

A class is 1 at its place and 0 elsewhere; of attributes, each is 1, -1, or 0 where it is not known. A label that is not
given at all is the vector 0, with which the network gives f(y, t).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

UNKNOWN = -1
"""In place of the number of a class: the image has no label."""


class ConditionEmbedding(nn.Module):
    """A vector for each name, beside the embedding of the noise level.

    Vectors of classes count from their mean: what all classes have in common belongs to f(y, t) as well. So a label of
    which there is only one changes nothing, to the last bit. All begin at zero: a network without labels becomes one
    with labels without forgetting anything.

    Args:
        kind: ``"class"`` or ``"attributes"``.
        size: names.
        width: of the vectors.
    """

    def __init__(self, kind: Literal["class", "attributes"], size: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.table = nn.Parameter(torch.zeros(size, width))

    @property
    def size(self) -> int:
        """Numbers of a label."""
        return len(self.table)

    def forward(self, condition: Tensor) -> Tensor:
        """(B, width) for labels (B, size)."""
        table = self.table
        if self.kind == "class":
            table = table - table.mean(0)
        return condition.to(table.dtype) @ table


def vectors_of(labels: Tensor, kind: Literal["class", "attributes"], size: int) -> Tensor:
    """Labels as the network takes them, float32 (B, size).

    Args:
        labels: (B,) integer numbers of classes, `UNKNOWN` for none; or (B, size) of attributes, 1, -1 or 0.
        kind, size: of the labels.
    """
    if kind == "attributes":
        return labels.float()
    known = labels >= 0
    # An unlabelled image takes a place of its own, which is cut off.
    places = torch.where(known, labels, size)
    return nn.functional.one_hot(places, size + 1)[:, :size].float()
