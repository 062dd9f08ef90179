"""Masses on a grid, against densities that are known."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_ladder
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.toy.density import Grid, exact_masses, kl_divergence, learned_masses, total_variation
from drl_dist.toy.distributions import DISTRIBUTIONS
from drl_dist.toy.study import misplaced_share, share_off
from drl_dist.toy.training import ToyModel, drl_experiment

GRID = Grid(cells=80)


@pytest.fixture(scope="module")
def model() -> ToyModel:
    return ToyModel.create(drl_experiment(seed=0, num_steps=1))


def test_a_learned_density_is_put_where_its_x_is(model: ToyModel) -> None:
    """A network that is the exact log-density of y_t = a_{t+1} x_t, at a level whose a is .775 and with an energy scale
    that it must be multiplied by, gives back the exact masses of x_t."""
    t, energy_scale = 2, 4.0
    levels = dataclasses.replace(model.levels, energy_scale=torch.full((6,), energy_scale))
    scale, ladder = float(levels.transition_scale[t]), model.ladder
    distribution = DISTRIBUTIONS["mixture"].affine(
        float(ladder.cumulative_scale[t]) * scale, float(ladder.cumulative_std[t]) * scale
    )

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        assert bool((level == t).all())
        return lambda y: ((distribution.density(y.double()).log() / energy_scale).float(), torch.zeros_like(y))

    found, exact = learned_masses(raw_at, levels, t, GRID), exact_masses(DISTRIBUTIONS["mixture"], ladder, t, GRID)
    assert float(found.sum()) == pytest.approx(1)
    assert total_variation(found, exact) < 1e-3
    # Another level's masses are not near.
    assert total_variation(found, exact_masses(DISTRIBUTIONS["mixture"], ladder, t + 1, GRID)) > 0.05


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_ladder_ends_in_white_noise(model: ToyModel, name: str) -> None:
    exact = exact_masses(DISTRIBUTIONS[name], build_ladder(model.experiment.diffusion), 6, GRID)
    line = torch.exp(-0.5 * GRID.centres().square())
    white = line[:, None] * line[None]
    assert total_variation(exact, white / white.sum()) < 5e-3


def test_distances_between_masses() -> None:
    first, second = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
    assert total_variation(first, second) == pytest.approx(0.5)
    assert total_variation(first, first) == 0
    assert kl_divergence(first, second) == pytest.approx(math.log(2))
    assert kl_divergence(second, first) > 100


def test_shares_of_points_near_the_data() -> None:
    data = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    points = torch.tensor([[0.1, 0.0], [0.0, 0.2], [float("nan"), 0.0], [0.0, -0.14]])
    assert share_off(points, data) == 0.5


def test_misplaced_points_are_those_in_squares_that_should_hold_fewer(model: ToyModel) -> None:
    exact = exact_masses(DISTRIBUTIONS["checkerboard"], model.ladder, 0, GRID)
    squares = torch.tensor([[x, y] for x in range(-2, 2) for y in range(-2, 2) if (x + y) % 2 == 0])
    middles = squares + 0.5
    # The blur of x_0 lets .4 % of the mass of each of eight squares out on each side, but for the board's own corners.
    assert misplaced_share(middles, exact, GRID) == pytest.approx(0, abs=0.02)
    assert misplaced_share(middles[:4], exact, GRID) == pytest.approx(0.5, abs=0.02)
    assert misplaced_share(middles + torch.tensor([1.0, 0.0]), exact, GRID) == pytest.approx(1, abs=0.02)
    lost = torch.where(torch.arange(8)[:, None] < 4, middles, torch.tensor([[float("nan"), 0.0]]))
    assert misplaced_share(lost, exact, GRID) == pytest.approx(0.5, abs=0.02)
    lost[4:] = torch.tensor([float("inf"), 9.0])
    assert misplaced_share(lost, exact, GRID) == pytest.approx(0.5, abs=0.02)
