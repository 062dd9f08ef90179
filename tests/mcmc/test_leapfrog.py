"""The leapfrog against the theory of it, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.energy.analytic import GaussianMixture
from drl_dist.mcmc.leapfrog import DIVERGENCE, leapfrog, locate, metropolis, total_energy
from tests.mcmc.distributions import stretched

MIXTURE = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.5, -1.5]], dtype=torch.float64), 0.7)
DENSITY = stretched(MIXTURE.log_density_and_grad, torch.tensor([0.5, 2.0], dtype=torch.float64))
COUNT = 200


def begin() -> tuple[Tensor, Tensor]:
    both = PhiloxNoise(0).normal(Purpose.BASE, torch.arange(COUNT), 0, (0, 1), (2,)).double()
    return both[0], both[1]


def travel(y: Tensor, momentum: Tensor, step_size: float, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """End, momentum there, and the energy error."""
    steps = torch.full((len(y),), step_size, dtype=torch.float64)
    point = locate(DENSITY, y)
    before = total_energy(point, momentum)
    for _ in range(num_steps):
        point, momentum = leapfrog(DENSITY, point, momentum, steps)
    return point.y, momentum, total_energy(point, momentum) - before


def test_back_in_time_leads_back() -> None:
    y, momentum = begin()
    there, arrived, _ = travel(y, momentum, 0.1, 40)
    assert float((there - y).square().sum(1).sqrt().median()) > 0.5
    for back, left in (travel(there, arrived, -0.1, 40)[:2], travel(there, -arrived, 0.1, 40)[:2]):
        torch.testing.assert_close(back, y, rtol=0, atol=1e-10)
        torch.testing.assert_close(left.abs(), momentum.abs(), rtol=0, atol=1e-10)


def test_the_energy_error_is_of_second_order() -> None:
    y, momentum = begin()
    sizes = [0.1 / 2**k for k in range(5)]
    errors = [float(travel(y, momentum, size, round(1.0 / size))[2].square().mean().sqrt()) for size in sizes]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(2, abs=0.02)
    assert orders[-2] == pytest.approx(2, abs=0.1)


def test_a_half_kick_left_out_has_first_order() -> None:
    # The same measurement on a wrong integrator, which forgets the last half of every kick.
    y, momentum = begin()
    errors: list[float] = []
    for size in (0.025, 0.0125):
        point, moving = locate(DENSITY, y), momentum
        before = total_energy(point, moving)
        for _ in range(round(1.0 / size)):
            moving = moving + size * point.gradient
            point = locate(DENSITY, point.y + size * moving)
        errors.append(float((total_energy(point, moving) - before).square().mean().sqrt()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)


def test_volume_is_kept() -> None:
    start, momentum = begin()
    for i in range(5):

        def flow(phase: Tensor) -> Tensor:
            end, left, _ = travel(phase[None, :2], phase[None, 2:], 0.3, 7)
            return torch.cat([end[0], left[0]])

        jacobian = torch.autograd.functional.jacobian(flow, torch.cat([start[i], momentum[i]]))
        assert isinstance(jacobian, Tensor)
        assert float((jacobian - torch.eye(4, dtype=torch.float64)).abs().max()) > 0.1
        assert float(torch.linalg.det(jacobian)) == pytest.approx(1, abs=1e-10)


def test_metropolis_accepts_with_the_right_probability() -> None:
    error = torch.tensor([-3.0, 0.0, 0.5, 2.0, 999.0, 1001.0, torch.inf], dtype=torch.float64)
    low = metropolis(error, torch.full_like(error, 1e-12), 3)
    assert low.is_accepted.tolist() == [True, True, True, True, False, False, False]
    assert low.acceptance_probability.tolist() == pytest.approx([1, 1, math.exp(-0.5), math.exp(-2), 0, 0, 0])
    assert low.is_divergent.tolist() == [False] * 5 + [True, True]
    assert low.num_leapfrog_steps.tolist() == [3] * 7
    middle = metropolis(error, torch.full_like(error, 0.5), 3)
    assert middle.is_accepted.tolist() == [True, True, True, False, False, False, False]
    assert DIVERGENCE == 1000
