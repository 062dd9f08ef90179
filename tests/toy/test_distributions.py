"""The data: densities that integrate to 1, samples that follow them, at every noise level."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.toy.density import Grid
from drl_dist.toy.distributions import DISTRIBUTIONS, DataDistribution, distribution

COUNT = 40_000
CELLS = 16
IDS = torch.arange(COUNT)

AFFINE = (0.7, 0.5)
"""A scale and a noise std, of about the middle of the ladder."""


def side(grid: Grid) -> float:
    """Side length of a cell."""
    return 2 * grid.half_width / grid.cells


def points_of(data_distribution: DataDistribution, seed: int = 0) -> Tensor:
    return data_distribution.sample(PhiloxNoise(seed), IDS).double()


def noised(points: Tensor, scale: float, noise_std: float) -> Tensor:
    return scale * points + noise_std * PhiloxNoise(0).normal(Purpose.BASE, IDS, 0, (0,), (2,))[0].double()


def chi_square_score(points: Tensor, data_distribution: DataDistribution) -> float:
    """Standard deviations between Pearson's statistic of a histogram and its mean under the distribution.

    Cells of side 1/2, so that edges of the checkerboard are edges of cells; those that expect fewer than 10 points are
    put together.
    """
    parts = 32
    grid = Grid(half_width=CELLS / 4, cells=CELLS)
    fine = data_distribution.density_on_square(grid.centres(parts)).reshape(CELLS, parts, CELLS, parts)
    expected = fine.mean((1, 3)).flatten() * side(grid) ** 2 * len(points)
    cell = ((points + grid.half_width) / side(grid)).floor().long().clamp(0, CELLS - 1)
    observed = torch.bincount(cell[:, 0] * CELLS + cell[:, 1], minlength=CELLS**2).double()
    is_full = expected >= 10
    expected = torch.cat([expected[is_full], (len(points) - expected[is_full].sum())[None]])
    observed = torch.cat([observed[is_full], observed[~is_full].sum()[None]])
    # One more keeps a last cell that expects next to nothing from dividing by it.
    statistic = float(((observed - expected).square() / (expected + 1)).sum())
    freedom = len(expected) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("is_noised", [False, True])
def test_the_density_integrates_to_1(name: str, is_noised: bool) -> None:
    data_distribution = DISTRIBUTIONS[name].affine(*AFFINE) if is_noised else DISTRIBUTIONS[name]
    grid = Grid(half_width=6.0, cells=480)
    total = float(data_distribution.density_on_square(grid.centres()).sum()) * side(grid) ** 2
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_samples_follow_the_density(name: str) -> None:
    assert abs(chi_square_score(points_of(DISTRIBUTIONS[name]), DISTRIBUTIONS[name])) < 4


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_noised_samples_follow_the_distribution_of_their_level(name: str) -> None:
    assert (
        abs(chi_square_score(noised(points_of(DISTRIBUTIONS[name]), *AFFINE), DISTRIBUTIONS[name].affine(*AFFINE))) < 4
    )


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(
    "wrong",
    [lambda points: 1.05 * points, lambda points: points + torch.tensor([0.05, 0.0])],
    ids=["larger", "beside"],
)
def test_other_samples_do_not(name: str, wrong: Callable[[Tensor], Tensor]) -> None:
    assert chi_square_score(wrong(points_of(DISTRIBUTIONS[name])), DISTRIBUTIONS[name]) > 8


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_density_on_a_square_is_that_at_its_points(name: str) -> None:
    data_distribution = DISTRIBUTIONS[name].affine(*AFFINE)
    axis = torch.linspace(-2.2, 1.9, 7, dtype=torch.float64)
    one_by_one = data_distribution.density(torch.cartesian_prod(axis, axis)).reshape(7, 7)
    torch.testing.assert_close(data_distribution.density_on_square(axis), one_by_one, rtol=1e-9, atol=1e-12)


def test_the_checkerboard_is_black_and_white() -> None:
    # The middle of each square, by columns from the left and rows from below.
    middles = torch.arange(4, dtype=torch.float64) - 1.5
    expected = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]] * 2).double() / 8
    torch.testing.assert_close(DISTRIBUTIONS["checkerboard"].density_on_square(middles), expected)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_coordinates_have_the_spread_that_the_ladder_expects(name: str) -> None:
    std = points_of(DISTRIBUTIONS[name]).std(0)
    assert bool(((std > 1.1) & (std < 1.5)).all()), std


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_point_depends_on_its_id_and_the_seed_alone(name: str) -> None:
    ids = torch.tensor([5, 0, 1 << 40])
    points = DISTRIBUTIONS[name].sample(PhiloxNoise(3), ids)
    assert points.dtype == torch.float32
    torch.testing.assert_close(points[1:2], DISTRIBUTIONS[name].sample(PhiloxNoise(3), ids[1:2]), rtol=0, atol=0)
    assert not torch.equal(points, DISTRIBUTIONS[name].sample(PhiloxNoise(4), ids))


def test_an_unknown_distribution_is_refused_with_the_names() -> None:
    with pytest.raises(UserError, match="got moons, expected one of checkerboard, rings, mixture, spirals"):
        distribution("moons")
