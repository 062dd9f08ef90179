"""FID and KID of a few images, cheap enough to be computed regularly during training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from drl_dist.data.index import ShardIndex
from drl_dist.data.subset import check_count
from drl_dist.evaluation.distances import fid, kid
from drl_dist.evaluation.feature_cache import cached_features
from drl_dist.evaluation.feature_spec import default_cache_dir, parse_features
from drl_dist.evaluation.features import FeatureNetwork, Features, features_of
from drl_dist.evaluation.networks import load_network

BATCH_SIZE = 64
"""Images that go through the feature network together."""
KID_IMAGES = 4096
"""Largest number of images per side of a KID; its kernel matrices have the square of this many entries."""


def image_scorer(
    features: str, index: ShardIndex, num_images: int, device: torch.device
) -> Callable[[Tensor], dict[str, float]]:
    """Make a function that scores generated images against real ones; the real ones are read once, here.

    Args:
        features: option of the feature network; see `drl_dist.evaluation.feature_spec.parse_features`.
        index: the real images.
        num_images: number of real images to use, evenly spread.
        device: device on which features are computed.

    Returns:
        uint8 images (B, C, H, W) -> ``{"score/fid": ..., "score/kid": ...}``.

    Raises:
        UserError: the feature network cannot be loaded, or there are fewer real images.
    """
    check_count(index, num_images, what="data", option="--tracking.score-num-images")
    network = load_network(parse_features(features), device)
    real = cached_features(
        index, num_images, network, cache_dir=default_cache_dir(), batch_size=BATCH_SIZE, what="real images"
    )
    return lambda generated: score_images(generated, real, network)


def score_images(generated: Tensor, real: Features | Tensor, network: FeatureNetwork) -> dict[str, float]:
    """FID and KID of a few generated images.

    FID is biased upwards, the more so the fewer images there are: compare it only between equal numbers of images. KID
    is unbiased.

    Args:
        generated: uint8 (B, C, H, W).
        real: uint8 images, or their features from the same network.
        network: the feature network.

    Returns:
        ``score/fid`` and ``score/kid``.

    Raises:
        UserError: the network cannot take the images.
    """
    if isinstance(real, Tensor):
        real = features_of(network, real.split(BATCH_SIZE))
    values = features_of(network, generated.split(BATCH_SIZE)).values
    # One subset of all images is as informative as many that overlap, in a hundredth of the time.
    mean, _ = kid(values, real.values, subset_size=KID_IMAGES, num_subsets=1)
    return {"score/fid": fid(values, real.values), "score/kid": mean}
