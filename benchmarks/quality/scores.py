"""Scores of samples against held-out and against training images, in the features of one network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.data import Data
from drl_dist.common.images import to_unit_range
from drl_dist.evaluation.distances import fid, kid, precision_recall
from drl_dist.evaluation.features import FeatureNetwork, Features, features_of

CONFIDENCE = 0.9
"""Probability of its class from which on an image counts as recognised."""
MOST = 10_000
"""Images of each part that scores look at."""
_TOGETHER = 500


@dataclass(frozen=True)
class Scorer:
    """Scores sets of images; the real ones are looked at once."""

    network: FeatureNetwork
    data: Data
    held_out: Features
    train: Features

    @classmethod
    def of(cls, network: FeatureNetwork, data: Data) -> Scorer:
        """A scorer against these images."""
        held_out, train = (
            features_of(network, images[:MOST].split(_TOGETHER)) for images in (data.held_out, data.train)
        )
        return cls(network, data, held_out, train)

    def score(self, images: Tensor) -> dict[str, Any]:
        """All scores of generated images, uint8 (N, C, H, W)."""
        features = features_of(self.network, images.split(_TOGETHER))
        return {
            **compared(features, self.held_out),
            "fid_train": fid(features.values, self.train.values),
            **classes(features),
            **nearest(images, self.data),
        }

    def reference(self) -> dict[str, Any]:
        """What real images score: what a perfect model would."""
        order = torch.randperm(len(self.train) + len(self.held_out), generator=torch.Generator().manual_seed(0))
        everything = Features(torch.cat([self.train.values, self.held_out.values]), None)
        half, other = (Features(everything.values[part], None) for part in order.tensor_split(2))
        return {
            "halves": compared(half, other),
            "train": compared(self.train, self.held_out),
            "unseen": classes(self.held_out),
        }


def compared(ours: Features, theirs: Features) -> dict[str, float]:
    """FID, KID, precision and recall of features; the last two of as many images of either set."""
    count = min(len(ours), len(theirs))
    precision, recall = precision_recall(ours.values[:count], theirs.values[:count])
    return {
        "fid": fid(ours.values, theirs.values),
        "kid": kid(ours.values, theirs.values, subset_size=MOST, num_subsets=1)[0],
        "precision": precision,
        "recall": recall,
    }


def classes(features: Features) -> dict[str, Any]:
    """Share of images in each class, and share that is recognised with confidence."""
    assert features.logits is not None
    probabilities = features.logits.softmax(1)
    shares = torch.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]) / len(features)
    return {
        "class_shares": [round(share, 4) for share in shares.tolist()],
        "recognised": float((probabilities.amax(1) > CONFIDENCE).float().mean()),
    }


def nearest(images: Tensor, data: Data) -> dict[str, float]:
    """Mean distance of images to their nearest neighbours among training and among held-out images, per pixel.

    The nearest of many is nearer than the nearest of few, so training images are taken in groups of as many as there
    are held-out ones. A model that remembers its training images has a ratio below 1.
    """
    held_out = data.held_out[:MOST]
    groups = data.train.split(len(held_out))
    # The rest would be a smaller group.
    groups = [group for group in groups if len(group) == len(held_out)] or [data.train]
    to_train = sum(_mean_nearest(images, group) for group in groups) / len(groups)
    to_held_out = _mean_nearest(images, held_out)
    return {"nearest_train": to_train, "nearest_held_out": to_held_out, "nearest_ratio": to_train / to_held_out}


def _mean_nearest(images: Tensor, others: Tensor) -> float:
    points, candidates = (to_unit_range(part).flatten(1).double() for part in (images, others))
    distances = torch.cat([torch.cdist(some, candidates).amin(1) for some in points.split(_TOGETHER)])
    return float(distances.mean()) / points.shape[1] ** 0.5
