"""FID, KID and inception score of features whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from drl_dist.evaluation.distances import fid, inception_score, kid, precision_recall


def normals(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean: Tensor, covariance: Tensor, count: int, seed: int) -> Tensor:
    """(count, D) whose sample mean and (unbiased) sample covariance are exactly these."""
    z = normals(count, len(mean), seed=seed)
    z = z - z.mean(0)
    white = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T


def frechet(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """The closed form, with a symmetric root where the library takes eigenvalues of a product."""
    half = root(covariance_1)
    cross = root(half @ covariance_2 @ half).trace()
    return float((mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * cross)


@pytest.mark.parametrize("seed", range(10))
def test_fid_is_the_closed_form_between_two_normal_distributions(seed: int) -> None:
    size = 7
    factors = [normals(size, size, seed=100 * seed + place) for place in (1, 2)]
    covariances = [factor @ factor.T / size + 0.1 * torch.eye(size, dtype=torch.float64) for factor in factors]
    means = [normals(size, seed=100 * seed + place) for place in (3, 4)]
    one, other = (with_moments(means[place], covariances[place], 40 + place, seed + place) for place in (0, 1))
    expected = frechet(means[0], covariances[0], means[1], covariances[1])
    assert fid(one, other) == pytest.approx(expected, rel=1e-9)
    # The test must notice a distribution that is a little wider.
    assert abs(fid(one, 1.01 * other) - expected) > 1e-3


def test_fid_of_known_numbers() -> None:
    # Diagonal covariances: |2|^2 in the mean, (3 - 1)^2 in one standard deviation.
    identity = torch.eye(4, dtype=torch.float64)
    stretched = torch.diag(torch.tensor([9.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    shift = torch.tensor([0.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    one, other = with_moments(torch.zeros(4).double(), identity, 50, 1), with_moments(shift, stretched, 60, 2)
    assert fid(one, other) == pytest.approx(8.0, rel=1e-9)


@pytest.mark.parametrize("count", [300, 12])
def test_identical_sets_have_fid_zero(count: int) -> None:
    # With fewer images than features the covariance is singular.
    features = normals(count, 16, seed=3).float()
    assert fid(features, features) == pytest.approx(0, abs=1e-5)


def test_features_are_not_summed_in_single_precision() -> None:
    # A mean of 1000 over 20 000 float32 numbers is off by more than this.
    features = 1000 + normals(20_000, 2, seed=5).float()
    shifted = features.double() + torch.tensor([0.01, 0.0], dtype=torch.float64)
    assert fid(features, shifted) == pytest.approx(1e-4, rel=1e-3)


def kids(shift: float, seeds: range) -> Tensor:
    return torch.tensor(
        [kid(normals(100, 6, seed=2 * seed), shift + normals(100, 6, seed=2 * seed + 1))[0] for seed in seeds]
    )


@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_kid_of_two_draws_of_one_distribution_is_zero_within_its_error(start: int) -> None:
    values = kids(0.0, range(start, start + 30))
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean())) < 4 * error
    assert float(kids(0.3, range(start, start + 30)).mean()) > 8 * error


@pytest.mark.slow
def test_kid_averages_over_subsets_of_larger_sets() -> None:
    one, other = normals(1200, 4, seed=1), normals(1000, 4, seed=2)
    mean, std = kid(one, other, num_subsets=20)
    assert std > 0
    assert abs(mean) < 5 * std
    assert kid(one[:1000], other)[1] == 0.0
    few = one[:60], other[:50]
    assert kid(*few) == kid(*few), "subsets are drawn from a seed of their own"


def test_inception_score_of_known_classes() -> None:
    assert inception_score(torch.zeros(100, 5)) == (pytest.approx(1.0, abs=1e-12), pytest.approx(0.0, abs=1e-12))
    classes = torch.arange(10_000) % 4
    certain = torch.nn.functional.one_hot(classes, 4) * 100.0
    # Ten parts of n = 1000 images: the entropy of their classes is short of log 4 by (4 - 1) / 2n on average.
    assert inception_score(certain)[0] == pytest.approx(4 * math.exp(-3 / 2000), abs=0.004)
    with pytest.raises(ValueError, match="at least 10 images, got 9"):
        inception_score(certain[:9])


def test_precision_and_recall_of_known_neighbours() -> None:
    """A line of numbers a unit apart: a ball reaches two units in the middle, and three from either end."""
    real = torch.arange(8.0)[:, None]
    assert precision_recall(real, real) == (1, 1)
    # The third neighbour of 0 is 3 away, so -2.9 is inside its ball and -3.1 is not.
    generated = torch.tensor([[-2.9], [-3.1], [4.5], [100.0]])
    precision, recall = precision_recall(generated, real)
    assert precision == 0.5
    # The balls of the four generated ones are as wide as the last one is far.
    assert recall == 1
