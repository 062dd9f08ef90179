"""Unadjusted Langevin against its own, biased, distribution; and Algorithm 2 on data whose every level is Gaussian."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.config.presets import preset
from drl_dist.diffusion.ladder import composed_ladder
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad, conditional_density
from drl_dist.energy.analytic import Gaussian, GaussianMixture
from drl_dist.mcmc.kernel import KeyedChainNoise, run_chain
from drl_dist.mcmc.langevin import UnadjustedLangevin
from drl_dist.sampling.progressive import ProgressiveSampler

COUNT = 40_000


def chain_ends(
    seed: int, density: LogDensityAndGrad, y: Tensor, delta: float, steps: int, noise_scale: float = 1.0
) -> Tensor:
    noise, ids = PhiloxNoise(seed), torch.arange(len(y))
    kernel = UnadjustedLangevin(density, torch.full((len(y),), delta, dtype=y.dtype), noise_scale)
    numbers = KeyedChainNoise(noise, Purpose.SAMPLE_CHAIN, ids, 0, tuple(y.shape[1:]), y.dtype)
    return run_chain(kernel, y, numbers, steps).y


def z_scores(samples: Tensor, mean: float, variance: float) -> tuple[float, float]:
    """Standard errors between samples and a Gaussian: of the mean, of the variance."""
    count = samples.numel()
    return (
        float((samples.mean() - mean) / math.sqrt(variance / count)),
        float(((samples - mean).square().mean() - variance) / (variance * math.sqrt(2 / count))),
    )


def biased_distribution(x0: float, mean: float, std: float, delta: float, steps: int) -> tuple[float, float]:
    """Mean and variance of the chain after `steps` steps on N(mean, std**2)."""
    q = 1 - delta**2 / (2 * std**2)
    return mean + q**steps * (x0 - mean), delta**2 * (1 - q ** (2 * steps)) / (1 - q**2)


@pytest.mark.parametrize("seed", range(10))
def test_the_biased_distribution_after_k_steps(seed: int) -> None:
    delta, steps, std = 0.7, 7, 0.8
    density = Gaussian(torch.tensor(0.5, dtype=torch.float64), std).log_density_and_grad
    ends = chain_ends(seed, density, torch.full((COUNT, 1), 2.0, dtype=torch.float64), delta, steps)
    for score in z_scores(ends, *biased_distribution(2.0, 0.5, std, delta, steps)):
        assert abs(score) < 4.5


def test_the_biased_distribution_notices_five_per_cent_of_noise() -> None:
    delta, steps, std = 0.7, 7, 0.8
    density = Gaussian(torch.tensor(0.5, dtype=torch.float64), std).log_density_and_grad
    ends = chain_ends(0, density, torch.full((COUNT, 1), 2.0, dtype=torch.float64), delta, steps, noise_scale=1.05)
    assert abs(z_scores(ends, *biased_distribution(2.0, 0.5, std, delta, steps))[1]) > 8


@pytest.mark.parametrize("is_mutated", [False, True])
def test_the_conditional_chain_samples_the_conditional(is_mutated: bool) -> None:
    marginal, noise_std = Gaussian(torch.tensor(0.0, dtype=torch.float64), 1.0), 0.3
    x_noisy = torch.full((COUNT, 1), 1.5, dtype=torch.float64)
    precision = torch.full((COUNT,), 0.0 if is_mutated else noise_std**-2, dtype=torch.float64)
    density = conditional_density(marginal.log_density_and_grad, x_noisy, precision)
    mean, std = marginal.posterior(torch.tensor(1.5, dtype=torch.float64), noise_std)
    delta, steps = 0.2, 30
    ends = chain_ends(0, density, x_noisy, delta, steps)
    scores = z_scores(ends, *biased_distribution(1.5, float(mean), std, delta, steps))
    # Without the recovery term the test must fail, by a wide margin.
    assert max(abs(score) for score in scores) > 50 if is_mutated else max(abs(score) for score in scores) < 4.5


def test_gradients_of_every_density_are_those_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    mixture = GaussianMixture(torch.randn(4, 3, generator=generator, dtype=torch.float64), 0.7)
    gaussian = Gaussian(torch.randn(3, generator=generator, dtype=torch.float64), 0.7)
    x_noisy = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    precision = torch.rand(5, generator=generator, dtype=torch.float64)
    for density in (
        mixture.log_density_and_grad,
        gaussian.log_density_and_grad,
        conditional_density(mixture.log_density_and_grad, x_noisy, precision),
    ):
        value, gradient = density(y)
        (expected,) = torch.autograd.grad(value.sum(), y)
        torch.testing.assert_close(gradient.detach(), expected)


def test_log_z_of_the_analytic_densities_by_quadrature() -> None:
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    width = float(grid[1, 0] - grid[0, 0])
    gaussian = Gaussian(torch.tensor([0.4], dtype=torch.float64), 0.7)
    mixture = GaussianMixture(torch.tensor([[-1.0], [2.0]], dtype=torch.float64), 0.5)
    assert gaussian.log_z(1) == pytest.approx(math.log(float(gaussian.log_density(grid).exp().sum()) * width), abs=1e-9)
    assert mixture.log_z() == pytest.approx(math.log(float(mixture.log_density(grid).exp().sum()) * width), abs=1e-9)


@pytest.mark.slow
def test_algorithm_2_draws_the_data_where_every_energy_is_known() -> None:
    # Long chains of small steps on exact energies: what comes out is x_0, the data with its first noise.
    experiment = preset("cifar10")
    experiment = dataclasses.replace(
        experiment, mcmc=dataclasses.replace(experiment.mcmc, step_scale_squared=0.02, level_scale_power=0.0)
    )
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    data = Gaussian(torch.tensor(0.5), 0.4)

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        t = int(level[0])
        distribution = data.level(ladder, t, float(levels.transition_scale[t]))
        scale = float(levels.energy_scale[t])

        def raw(y: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = distribution.log_density_and_grad(y)
            return value / scale, gradient / scale

        return raw

    sampler = ProgressiveSampler(levels, num_chain_steps=600, noise_scale=1.0)
    stages = sampler.sample_levels(raw_at, PhiloxNoise(0), torch.arange(4000), (1,))
    assert stages.shape == (7, 4000, 1)
    for t in range(6):
        expected = data.affine(float(ladder.cumulative_scale[t]), float(ladder.cumulative_std[t]))
        samples = stages[6 - t]
        # One per cent of bias from the step size, and the Monte-Carlo error.
        assert float(samples.mean()) == pytest.approx(float(expected.mean), abs=0.03)
        assert float(samples.std()) == pytest.approx(expected.std, rel=0.05)


def test_generated_images_do_not_depend_on_their_batch() -> None:
    experiment = preset("digits")
    ladder = composed_ladder()
    sampler = ProgressiveSampler(build_levels(experiment, ladder), num_chain_steps=3, noise_scale=0.99)
    distribution = Gaussian(torch.tensor(0.0), 1.0)

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        return distribution.log_density_and_grad

    ids = torch.arange(6)
    together = sampler.sample(raw_at, PhiloxNoise(3), ids, (1, 4, 4))
    apart = torch.cat([sampler.sample(raw_at, PhiloxNoise(3), part, (1, 4, 4)) for part in ids.split(2)])
    assert torch.equal(together, apart)
