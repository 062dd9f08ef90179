"""Scores of images that were asked to be of a class: FID of each class, and what a classifier takes them for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.data.index import ShardIndex
from drl_dist.evaluation.distances import fid
from drl_dist.evaluation.feature_spec import FeatureSpec
from drl_dist.evaluation.features import FeatureNetwork, Features
from drl_dist.evaluation.networks import load_network

FEWEST = 2
"""Images of a class in either set without which there is no covariance, and so no FID."""


@dataclass(frozen=True)
class ClassFid:
    """The FID of one class."""

    name: str
    fid: float | None
    """None where there are too few images."""
    num_samples: int
    """Generated images of the class."""
    num_data: int
    """Real ones."""


def class_fids(
    generated: Tensor, asked: Tensor, real: Tensor, labels: Tensor, names: Sequence[str]
) -> tuple[ClassFid, ...]:
    """The FID of the images of each class.

    Args:
        generated: features (N, D).
        asked: (N,) int64, the class of each; -1 without one.
        real: features (M, D).
        labels: (M,) int64, as `asked`.
        names: of the classes.
    """
    found: list[ClassFid] = []
    for label, name in enumerate(names):
        ours, theirs = generated[asked == label], real[labels == label]
        score = fid(ours, theirs) if min(len(ours), len(theirs)) >= FEWEST else None
        found.append(ClassFid(name, score, len(ours), len(theirs)))
    return tuple(found)


def intra_fid(fids: Sequence[ClassFid]) -> float | None:
    """The mean FID of the classes that have one, each counting alike; None if none has."""
    scores = [one.fid for one in fids if one.fid is not None]
    return sum(scores) / len(scores) if scores else None


@dataclass(frozen=True, eq=False)
class Recognition:
    """What a classifier takes labelled images for."""

    confusion: Tensor
    """(K, K) int64: how many images of each class, a row, were taken for each class, a column."""

    @property
    def num_images(self) -> int:
        """Images with a label."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of them that are taken for what they were asked to be."""
        return float(self.confusion.diagonal().sum()) / self.num_images

    @property
    def by_class(self) -> list[float | None]:
        """The same share of the images of each class; None where there are none."""
        rows = zip(self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist(), strict=True)
        return [right / count if count else None for right, count in rows]


def recognition(logits: Tensor, labels: Tensor) -> Recognition:
    """What logits (N, K) say of images with labels (N,) int64, at least one of which is not -1."""
    is_known = labels >= 0
    size = logits.shape[1]
    pairs = labels[is_known] * size + logits[is_known].argmax(1)
    return Recognition(torch.bincount(pairs, minlength=size**2).reshape(size, size))


def class_logits(features: Features) -> Tensor:
    """What a classifier says of classes, (N, K): a module that returns one tensor alone returns logits."""
    return features.values if features.logits is None else features.logits


def load_classifier(spec: FeatureSpec, device: torch.device, index: ShardIndex, names: Sequence[str]) -> FeatureNetwork:
    """Load a classifier of these classes onto a device.

    Args:
        spec: its option.
        device: of the network.
        index: images that it is for.
        names: of the classes.

    Raises:
        UserError: its weights are missing, damaged or those of another network, it cannot take the images, or it tells
            another number of classes apart.
    """
    network = load_network(spec, device, num_classes=len(names))
    found = network(torch.zeros(1, index.channels, index.resolution, index.resolution, dtype=torch.uint8))
    # The features of a timm model without classes are no logits, whatever their number.
    count = 0 if spec.kind == "timm" and found.logits is None else class_logits(found).shape[1]
    if count != len(names):
        raise UserError(
            f"classifier {spec.text}",
            got=counted(count, "output"),
            expected=f"{len(names)}, one for each class of {index.url}, in their order",
            remedy="name a classifier that was trained on these classes",
        )
    return network
