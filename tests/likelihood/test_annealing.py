"""The passage between two densities, its cuts, its weights, and its exact reversal."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.energy.analytic import Gaussian
from drl_dist.likelihood.annealing import anneal, betas, bridge_step
from drl_dist.likelihood.weights import (
    curve,
    curve_sizes,
    effective_sample_size,
    is_carried_by_few,
    log_mean_exp,
    standard_error,
)
from drl_dist.mcmc.hmc import Hmc
from drl_dist.mcmc.kernel import KeyedChainNoise, run_chain

WIDE = Gaussian(torch.zeros((), dtype=torch.float64), 1.0)
NARROW = Gaussian(torch.tensor(0.2, dtype=torch.float64), 0.2)


def noise_of(count: int, dims: int, seed: int = 0) -> KeyedChainNoise:
    return KeyedChainNoise(PhiloxNoise(seed), Purpose.SAMPLE_CHAIN, torch.arange(count), 0, (dims,), torch.float64)


def draws(distribution: Gaussian, count: int, dims: int, seed: int = 9) -> Tensor:
    return (
        distribution.mean
        + distribution.std * PhiloxNoise(seed).normal(Purpose.BASE, torch.arange(count), 0, (0,), (dims,))[0].double()
    )


class Counted:
    """A density that counts how often it is asked."""

    def __init__(self, density: LogDensityAndGrad) -> None:
        self.density, self.count = density, 0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.count += 1
        return self.density(x)


@pytest.mark.parametrize("is_upward", [False, True])
@pytest.mark.parametrize("num_bridges", [1, 5])
def test_it_is_the_plain_algorithm(num_bridges: int, is_upward: bool) -> None:
    # Written out with a fresh kernel for every bridge and nothing remembered.
    start = draws(NARROW if is_upward else WIDE, 6, 3)
    upper, lower = Counted(WIDE.log_density_and_grad), Counted(NARROW.log_density_and_grad)
    found = anneal(
        upper,
        lower,
        start,
        upper_step=0.8,
        lower_step=0.15,
        noise=noise_of(6, 3),
        num_bridges=num_bridges,
        num_leapfrog_steps=3,
        is_upward=is_upward,
    )
    assert upper.count == lower.count == 1 + 3 * num_bridges

    x, weight, cuts = start, torch.zeros(6, dtype=torch.float64), betas(0.8, 0.15, num_bridges)

    def log_density(y: Tensor, beta: float) -> Tensor:
        return (1 - beta) * WIDE.log_density(y) + beta * NARROW.log_density(y)

    for step, k in enumerate(reversed(range(num_bridges)) if is_upward else range(num_bridges)):
        beta = cuts[k + 1]

        def density(y: Tensor, beta: float = beta) -> tuple[Tensor, Tensor]:
            (u, gu), (v, gv) = WIDE.log_density_and_grad(y), NARROW.log_density_and_grad(y)
            return (1 - beta) * u + beta * v, (1 - beta) * gu + beta * gv

        kernel = Hmc(density, torch.full((6,), bridge_step(0.8, 0.15, beta), dtype=torch.float64), 3)
        if not is_upward:
            weight += log_density(x, beta) - log_density(x, cuts[k])
        x = run_chain(kernel, x, noise_of(6, 3), 1, start=step).y
        if is_upward:
            weight += log_density(x, cuts[k]) - log_density(x, beta)
    torch.testing.assert_close(found.x, x)
    torch.testing.assert_close(found.log_weight, weight)
    assert bool(((found.acceptance_rate > 0) & (found.acceptance_rate <= 1)).all())
    assert not torch.equal(found.x, start)


@pytest.mark.parametrize("is_upward", [False, True])
def test_the_mean_weight_is_the_ratio_of_normalisers(is_upward: bool) -> None:
    dims, count = 2, 4000
    truth = NARROW.log_z(dims) - WIDE.log_z(dims)
    for num_bridges in (1, 4):
        found = anneal(
            WIDE.log_density_and_grad,
            NARROW.log_density_and_grad,
            draws(NARROW if is_upward else WIDE, count, dims),
            upper_step=0.8,
            lower_step=0.2,
            noise=noise_of(count, dims),
            num_bridges=num_bridges,
            is_upward=is_upward,
        )
        ratio = torch.exp(found.log_weight + (truth if is_upward else -truth))
        if is_upward and num_bridges == 1:
            continue  # a narrow proposal for a wide distribution: its weights have no variance
        assert abs(float(ratio.mean()) - 1) < 3 * float(ratio.std()) / math.sqrt(count)


def test_cuts_are_equally_hard_for_normal_distributions() -> None:
    cuts = betas(1.0, 0.01, 8)
    assert (cuts[0], cuts[-1]) == (0.0, pytest.approx(1.0))
    widths = [bridge_step(1.0, 0.01, beta) for beta in cuts]
    ratios = [after / before for before, after in itertools.pairwise(widths)]
    assert ratios == pytest.approx([0.01 ** (1 / 8)] * 8)
    assert betas(0.5, 0.5, 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert betas(0.5, 0.5 * (1 + 1e-5), 4) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0], abs=1e-4)
    # Towards a wider distribution as well.
    assert betas(0.1, 1.0, 2)[1] == pytest.approx(1 - betas(1.0, 0.1, 2)[1])


def test_better_cuts_give_better_weights() -> None:
    # What equal steps of beta would give, by the same passage with equal step sizes at both ends.
    def size(upper_step: float, lower_step: float) -> float:
        found = anneal(
            WIDE.log_density_and_grad,
            Gaussian(torch.zeros((), dtype=torch.float64), 0.02).log_density_and_grad,
            draws(WIDE, 500, 4),
            upper_step=upper_step,
            lower_step=lower_step,
            noise=noise_of(500, 4),
            num_bridges=150,
        )
        return float(effective_sample_size(found.log_weight))

    good, bad = size(1.0, 0.02), size(0.02, 0.02)
    assert good > 40
    assert bad < 0.2 * good


def test_statistics_of_weights() -> None:
    equal = torch.full((8,), -1000.0, dtype=torch.float64)
    assert float(log_mean_exp(equal)) == pytest.approx(-1000)
    assert float(effective_sample_size(equal)) == pytest.approx(8)
    assert standard_error(equal) == 0
    one = torch.tensor([700.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert float(effective_sample_size(one)) == pytest.approx(1)
    assert float(log_mean_exp(one)) == pytest.approx(700 - math.log(4))
    values = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
    assert float(effective_sample_size(values.log())) == pytest.approx(16**2 / (1 + 4 + 9 + 100))
    assert standard_error(values.log()) == pytest.approx(float(values.std()) / 4 / 2)
    table = torch.stack([values.log(), torch.zeros(4, dtype=torch.float64)])
    assert log_mean_exp(table, 1).tolist() == pytest.approx([math.log(4), 0])


def test_the_standard_error_is_that_of_repeated_estimates() -> None:
    normals = PhiloxNoise(0).normal(Purpose.BASE, torch.arange(400), 0, (0,), (200,))[0].double()
    estimates = log_mean_exp(0.5 * normals, 1)
    predicted = sum(standard_error(0.5 * row) for row in normals) / 400
    # The standard deviation of 400 estimates is known to 3.5 %.
    assert predicted == pytest.approx(float(estimates.std()), rel=0.12)


def test_few_carry_a_mean() -> None:
    assert is_carried_by_few(9.9, 100)
    assert not is_carried_by_few(10.1, 100)
    assert is_carried_by_few(49, 1000)
    assert not is_carried_by_few(51, 1000)
    assert is_carried_by_few(1.4, 3)
    assert not is_carried_by_few(1.6, 3)


def test_a_curve_averages_disjoint_groups() -> None:
    assert curve_sizes(1) == [1]
    assert curve_sizes(8) == [1, 2, 4, 8]
    assert curve_sizes(11) == [1, 2, 4, 8, 11]
    weights = torch.tensor([1.0, 3.0, 5.0, 7.0, 100.0], dtype=torch.float64).log()
    one, two, five = curve(weights, [1, 2, 5])
    assert one == pytest.approx(float(weights.mean()))
    assert two == pytest.approx((math.log(2) + math.log(6)) / 2)
    assert five == pytest.approx(math.log(116 / 5))
