"""Statistics of importance weights: logarithm of their mean, effective sample size and standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MIN_SAMPLES = 10.0
"""Number of effective samples below which a mean of weights is left to chance."""
MARKOV_CONFIDENCE = 0.95
"""Probability with which `markov_margin` holds."""
MIN_SHARE = 0.05
"""Share of effective samples below which the samples may have missed the tail of the weights."""


def log_mean_exp(log_weight: Tensor, dim: int = 0) -> Tensor:
    """Logarithm of the mean of exp(log_weight) over an axis (the logarithm of equation 46)."""
    return torch.logsumexp(log_weight, dim) - math.log(log_weight.shape[dim])


def effective_sample_size(log_weight: Tensor, dim: int = 0) -> Tensor:
    """(sum w)**2 / sum w**2 over an axis: 1 if one weight outweighs all, the number of weights if all are equal."""
    return torch.exp(2 * torch.logsumexp(log_weight, dim) - torch.logsumexp(2 * log_weight, dim))


def markov_margin() -> float:
    """log 20 = 2.996 nats: how far above the truth `log_mean_exp` of weights may lie in one case of twenty, at most.

    Weights are non-negative and their mean estimates Z without bias, so by Markov's inequality it exceeds 20 Z with a
    probability of at most 1 / 20, however few and however unequal the weights are.
    """
    return -math.log(1 - MARKOV_CONFIDENCE)


def is_carried_by_few(ess: float, num_samples: int) -> bool:
    """Whether a mean of weights must be distrusted: under `MIN_SAMPLES` effective samples, or `MIN_SHARE` of all."""
    return ess < max(min(MIN_SAMPLES, 0.5 * num_samples), MIN_SHARE * num_samples)


def standard_error(log_weight: Tensor) -> float:
    """Standard error of `log_mean_exp` of independent weights (M,), by the delta method; nan for one weight.

    It is far too small where `is_carried_by_few` warns.
    """
    weights = torch.exp(log_weight - log_weight.max())
    return float(weights.std() / weights.mean() / math.sqrt(len(weights)))


def curve(log_weight: Tensor, sizes: Sequence[int]) -> list[float]:
    """Mean of `log_mean_exp` over groups of so many samples: the curves of Figure 7, right.

    Args:
        log_weight: (M,).
        sizes: numbers of samples, 1 to M; the average is over as many disjoint groups as there are.
    """
    found: list[float] = []
    for size in sizes:
        groups = log_weight[: len(log_weight) // size * size].reshape(-1, size)
        found.append(float(log_mean_exp(groups, 1).mean()))
    return found


def curve_sizes(num_samples: int) -> list[int]:
    """1, 2, 4, ... below the number of samples, and that number."""
    return [*(2**power for power in range(max(0, (num_samples - 1).bit_length()))), num_samples]


def resampled(log_weight: Tensor, offset: Tensor) -> Tensor:
    """Which of M weighted samples to take, M times with repetition, in proportion to their weights.

    Systematic resampling (Kitagawa, 1996): a sample of share s is taken floor(M s) or ceil(M s) times.

    Args:
        log_weight: (M,) float64.
        offset: (1,) float64 in [0, 1), a uniform draw.

    Returns:
        (M,) int64 indices, in rising order.
    """
    count = len(log_weight)
    places = (torch.arange(count, dtype=torch.float64, device=log_weight.device) + offset) / count
    upper_ends = log_weight.softmax(0).cumsum(0)
    # Rounding may leave the last end below the last place.
    return torch.searchsorted(upper_ends, places, right=True).clamp_max(count - 1)
