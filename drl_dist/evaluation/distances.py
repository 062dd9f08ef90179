"""FID, KID, precision, recall and the inception score of features, computed by torch-fidelity.

Features are passed as float64: in float32, means over 50 000 images lose digits that matter to a FID of a few units.
"""

from __future__ import annotations

from torch import Tensor

from drl_dist.common.torchvision_import import make_importable

KID_SUBSET_SIZE, KID_SUBSETS = 1000, 100
"""Size and number of the subsets over which a KID is averaged, as in published KIDs."""
ISC_SPLITS = 10
NEIGHBOURS = 3
"""k of the balls whose union is a set's manifold (Kynkäänniemi et al., 2019)."""
_PRC_BATCH = 1000
"""Rows of a matrix of distances that are in memory together."""
SEED = 2020
"""torch-fidelity's default seed, for KID's subsets and for the split of images into the inception score's parts."""


def fid(generated: Tensor, real: Tensor) -> float:
    """Frechet distance between the normal distributions with the moments of two sets of features, (N, D) and (M, D)."""
    make_importable()
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    moments = [fid_features_to_statistics(values.double()) for values in (generated, real)]
    return fid_statistics_to_metric(*moments, verbose=False)[KEY_METRIC_FID]


def kid(
    generated: Tensor, real: Tensor, *, subset_size: int = KID_SUBSET_SIZE, num_subsets: int = KID_SUBSETS
) -> tuple[float, float]:
    """Kernel distance (unbiased, cubic kernel) of features (N, D) and (M, D): mean and std over random subsets.

    Subsets are no larger than the smaller set. If they would be as large as both sets there is only one, with std 0.
    """
    make_importable()
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    subset_size = min(subset_size, len(generated), len(real))
    metrics = kid_features_to_metric(
        generated.double(),
        real.double(),
        kid_subset_size=subset_size,
        kid_subsets=num_subsets if max(len(generated), len(real)) > subset_size else 1,
        rng_seed=SEED,
        verbose=False,
    )
    return metrics[KEY_METRIC_KID_MEAN], metrics[KEY_METRIC_KID_STD]


def inception_score(logits: Tensor) -> tuple[float, float]:
    """Inception score of logits (N, K): exp of the mean KL divergence between an image's class probabilities and those
    of all images; mean and std over ten parts of the images.

    Raises:
        ValueError: there are fewer images than parts.
    """
    make_importable()
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    if len(logits) < ISC_SPLITS:
        raise ValueError(f"an inception score needs at least {ISC_SPLITS} images, got {len(logits)}")
    metrics = isc_features_to_metric(logits, splits=ISC_SPLITS, shuffle=True, rng_seed=SEED)
    return metrics[KEY_METRIC_ISC_MEAN], metrics[KEY_METRIC_ISC_STD]


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Share of generated features (N, D) within the manifold of the real ones (M, D), and the reverse.

    A set's manifold is the union of the balls around its features that reach to the third nearest other one; N and M
    are at least 4.
    """
    make_importable()
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    found = prc_features_to_metric(
        generated.double(),
        real.double(),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=_PRC_BATCH,
        save_cpu_ram=True,
        verbose=False,
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]
