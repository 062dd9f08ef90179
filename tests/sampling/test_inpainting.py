"""Posterior sampling on pixels with known distributions; the observed part stays exact; batches do not matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_network, build_posterior_sampler
from drl_dist.common.images import to_uint8, to_unit_range
from drl_dist.config.presets import preset
from drl_dist.config.tree import EngineConfig
from drl_dist.diffusion.ladder import composed_ladder, linear_ladder
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.energy.analytic import CorrelatedGaussian
from drl_dist.sampling.inpainting import (
    ObservedBlockMeans,
    ObservedPixels,
    PosteriorSampler,
    enlarge,
)
from drl_dist.training.chain import GradientEngine
from tests.sampling.worlds import (
    EYE,
    LIMIT,
    OBSERVATIONS,
    OBSERVED,
    SHAPE,
    QuickNoise,
    X,
    distribution_of_completions,
    drawn,
    free_distribution,
    isotropic,
    pixels,
    posterior_sampler,
    worst_score,
)

GROUPS, PER_GROUP = 10, 2000


def posterior(data: CorrelatedGaussian, num_levels: int, projection: Tensor) -> CorrelatedGaussian:
    """The distribution of x_0 given what is observed of it."""
    ladder = composed_ladder(num_levels)
    rows = torch.linalg.svd(projection).Vh[: int(projection.trace().round())]
    return data.affine(float(ladder.scale[0]), float(ladder.std[0])).given(rows, rows @ X)


@pytest.mark.slow
@pytest.mark.parametrize("num_rounds", [1, 3])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_completions_have_exactly_the_distribution_of_their_chains(name: str, num_rounds: int) -> None:
    # Few and long steps, whose bias theory knows, and levels of which none is without noise.
    sampler, raw_at = posterior_sampler(
        pixels(), ladder=linear_ladder(3, 0.2, 0.5), num_rounds=num_rounds, num_chain_steps=8, step_share=0.4
    )
    projection = OBSERVATIONS[name][1]
    wanted = free_distribution(distribution_of_completions(sampler, pixels(), projection, X), projection)
    count = GROUPS * PER_GROUP
    for group in drawn(name, sampler, raw_at, count, num_rounds).split(PER_GROUP):
        assert worst_score(group, wanted) < LIMIT
    # And mistakes would be noticed: noise that is 8 % too large, another number of rounds.
    for mistaken in (replace(sampler, noise_scale=1.08), replace(sampler, num_rounds=4 - num_rounds)):
        assert worst_score(drawn(name, mistaken, raw_at, count, 3), wanted) > LIMIT


@pytest.mark.parametrize("spread", ["transition", "posterior"])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_without_chain_steps_completions_have_the_distribution_of_normal_draws(name: str, spread: str) -> None:
    sampler, raw_at = posterior_sampler(pixels(), ladder=linear_ladder(8, 0.02, 0.05), num_rounds=2, num_chain_steps=0)
    if spread == "posterior":
        noise = sampler.ladder.noise_in_y(sampler.levels.transition_scale)
        sampler = replace(sampler, levels=replace(sampler.levels, noise_precision=noise**-2))
    projection = OBSERVATIONS[name][1]
    wanted = free_distribution(distribution_of_completions(sampler, pixels(), projection, X), projection)
    assert worst_score(drawn(name, sampler, raw_at, 20_000, 0), wanted) < LIMIT
    for mistaken in (replace(sampler, noise_scale=1.08), replace(sampler, num_rounds=1)):
        assert worst_score(drawn(name, mistaken, raw_at, 20_000, 1), wanted) > LIMIT


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_completions_have_the_distribution_of_chains_that_differ_in_length(name: str) -> None:
    sampler, raw_at = posterior_sampler(
        pixels(), ladder=linear_ladder(3, 0.2, 0.5), num_rounds=2, num_chain_steps=(9, 1, 4), step_share=0.4
    )
    projection = OBSERVATIONS[name][1]
    wanted = free_distribution(distribution_of_completions(sampler, pixels(), projection, X), projection)
    assert worst_score(drawn(name, sampler, raw_at, 20_000, 0), wanted) < LIMIT
    for others in ((4, 1, 9), (9, 2, 4)):
        mistaken = replace(sampler, num_chain_steps=others)
        assert worst_score(drawn(name, mistaken, raw_at, 20_000, 1), wanted) > LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("field", ["cumulative_scale", "cumulative_std"])
def test_what_is_observed_must_be_noised_as_the_ladder_says(field: str) -> None:
    sampler, raw_at = posterior_sampler(
        pixels(), ladder=linear_ladder(3, 0.2, 0.5), num_rounds=3, num_chain_steps=16, step_share=0.3
    )
    projection = OBSERVATIONS["pixels"][1]
    wanted = free_distribution(distribution_of_completions(sampler, pixels(), projection, X), projection)
    factor = {"cumulative_scale": 0.7, "cumulative_std": 0.0}[field]
    mistaken = replace(sampler, ladder=replace(sampler.ladder, **{field: factor * getattr(sampler.ladder, field)}))
    assert worst_score(drawn("pixels", mistaken, raw_at, 40_000, 0), wanted) > LIMIT


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_with_rounds_and_steps_the_distribution_becomes_the_posterior(name: str) -> None:
    projection = OBSERVATIONS[name][1]
    wanted = free_distribution(posterior(pixels(), 6, projection), projection)
    distances: list[float] = []
    for num_rounds in (1, 2, 4, 16):
        sampler, _ = posterior_sampler(pixels(), num_rounds=num_rounds, num_chain_steps=100_000, step_share=0.001)
        distances.append(
            apart(free_distribution(distribution_of_completions(sampler, pixels(), projection, X), projection), wanted)
        )
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.12
    assert distances[2] < 0.08
    assert distances[3] < 0.005


def apart(distribution: CorrelatedGaussian, other: CorrelatedGaussian) -> float:
    """The largest difference of means and of standard deviations, in standard deviations of the other distribution."""
    std = other.covariance.diagonal().sqrt()
    spread = (distribution.covariance.diagonal().sqrt() - std) / std
    return float(torch.cat([(distribution.mean - other.mean) / std, spread]).abs().max())


@pytest.mark.slow
def test_four_rounds_draw_from_the_posterior() -> None:
    distribution = pixels(0.5)
    sampler, raw_at = posterior_sampler(distribution, num_rounds=4, num_chain_steps=200, step_share=0.1)
    wanted = free_distribution(posterior(distribution, 6, OBSERVATIONS["pixels"][1]), OBSERVATIONS["pixels"][1])
    # In theory .029 of a standard deviation is left.
    assert worst_score(drawn("pixels", sampler, raw_at, 2000, 0), wanted, tolerance=0.03) < LIMIT
    # One round, which leaves .19, would not do.
    assert worst_score(drawn("pixels", replace(sampler, num_rounds=1), raw_at, 2000, 0), wanted, 0.03) > LIMIT


def test_the_figures_that_the_documentation_gives() -> None:
    places = torch.arange(4, dtype=torch.float64)
    data = CorrelatedGaussian(0 * places, 0.25 * 0.9 ** (places[:, None] - places[None, :]).abs())
    projection = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    x = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    ladder = composed_ladder()
    wanted = data.affine(float(ladder.scale[0]), float(ladder.std[0])).given(projection[:2], x[:2])
    for num_rounds, mean, std in ((1, [0.845, 0.771], [1.113, 1.107]), (4, [0.991, 0.985], [1.003, 1.003])):
        sampler, _ = posterior_sampler(data, num_rounds=num_rounds, num_chain_steps=100_000, step_share=0.001)
        distribution = distribution_of_completions(sampler, data, projection, x)
        assert (distribution.mean / wanted.mean)[2:].tolist() == pytest.approx(mean, abs=0.002)
        spread = (distribution.covariance.diagonal() / wanted.covariance.diagonal()).sqrt()
        assert spread[2:].tolist() == pytest.approx(std, abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize("noise_std", [0.25, 0.5, 1.8, 8.0])
def test_denoised_images_have_the_posterior_distribution(noise_std: float) -> None:
    data = pixels(0.7)
    sampler, raw_at = posterior_sampler(data, num_chain_steps=400, step_share=0.1)
    count = 2000
    x_noisy = (1 + noise_std) * X
    given = x_noisy.reshape(SHAPE).expand(count, *SHAPE)
    scale, std = float(sampler.ladder.scale[0]), float(sampler.ladder.std[0])
    x_0 = data.affine(scale, std)
    made = sampler.denoise(raw_at, QuickNoise(3), torch.arange(count), given, noise_std).flatten(1)
    # In the ladder's terms: scale * x_noisy is x_0 with so much further noise.
    wanted, noisier = (
        x_0.given(EYE, scale * x_noisy, (share * (scale * noise_std) ** 2 - std**2) ** 0.5) for share in (1, 3)
    )
    assert worst_score(made, wanted, tolerance=0.03) < LIMIT
    # The same image taken for a noisier one would be noticed, unless it says next to nothing.
    assert (worst_score(made, noisier, tolerance=0.03) > LIMIT) == (noise_std < 8)


def test_noise_of_exactly_a_level_starts_there_with_its_own_recovery_term() -> None:
    sampler, _ = posterior_sampler(pixels(), num_chain_steps=1, step_share=0.1)
    ladder = sampler.ladder
    ratios = ladder.cumulative_std / ladder.cumulative_scale
    for t in range(ladder.num_levels):
        assert sampler.start_level(float(ratios[t + 1]) * (1 - 1e-9)) == t
        further = (ladder.cumulative_scale[t] * ratios[t + 1]).square() - ladder.cumulative_std[t].square()
        assert float(ladder.scale[t + 1] * further.sqrt()) == pytest.approx(float(ladder.std[t + 1]), rel=1e-6)
    for noise_std in (float(ratios[0]), float(ratios[-1]), 0.0, float("nan")):
        with pytest.raises(ValueError, match="noise must have a standard deviation between"):
            sampler.start_level(noise_std)


def quick_sampler() -> PosteriorSampler:
    """As the digits have it, with a few chain steps of two rounds."""
    return replace(build_posterior_sampler(preset("digits"), num_rounds=2), num_chain_steps=4)


def test_observed_pixels_are_those_of_the_input_to_the_bit() -> None:
    sampler = quick_sampler()
    original = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    is_observed = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    completed = sampler.complete(
        isotropic, PhiloxNoise(0), torch.arange(4), to_unit_range(original), ObservedPixels(is_observed)
    )
    assert torch.equal(completed[is_observed], to_unit_range(original)[is_observed])
    made = to_uint8(completed)
    assert torch.equal(made[is_observed], original[is_observed])
    assert float((made != original)[~is_observed].float().mean()) > 0.9


def test_what_is_not_observed_is_not_looked_at() -> None:
    sampler = quick_sampler()
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    is_observed = torch.zeros(8, 8, dtype=torch.bool)
    is_observed[:, :4] = True
    changed = torch.where(is_observed, x, -x)
    moved = x + enlarge(torch.tensor([[[[0.2, -0.2], [-0.2, 0.2]]]]), 1).repeat(2, 1, 4, 4)
    for observation, other in ((ObservedPixels(is_observed), changed), (ObservedBlockMeans(2), moved)):
        one, two = (
            sampler.complete(isotropic, PhiloxNoise(0), torch.arange(2), given, observation) for given in (x, other)
        )
        torch.testing.assert_close(one, two, rtol=0, atol=2e-6)


def test_block_means_are_those_of_the_input() -> None:
    sampler = quick_sampler()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    completed = sampler.complete(isotropic, PhiloxNoise(0), torch.arange(3), x, ObservedBlockMeans(4))
    pooled, wanted = (torch.nn.functional.avg_pool2d(image, 4) for image in (completed, x))
    torch.testing.assert_close(pooled, wanted, rtol=0, atol=1e-6)
    assert float((completed - x).abs().mean()) > 0.1


def test_images_do_not_depend_on_their_batch() -> None:
    sampler = quick_sampler()
    noise, ids = PhiloxNoise(3), torch.tensor([5, 0, 9, 2**33])
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    is_observed = x > 0

    def complete(part: list[int]) -> Tensor:
        return sampler.complete(isotropic, noise, ids[part], x[part], ObservedPixels(is_observed[part]))

    def denoise(part: list[int]) -> Tensor:
        return sampler.denoise(isotropic, noise, ids[part], x[part], 0.6)

    for work in (complete, denoise):
        together = work([0, 1, 2, 3])
        assert torch.equal(together, torch.cat([work([0]), work([1, 2]), work([3])]))
        assert torch.equal(together[[2, 0]], work([2, 0]))
        # Two completions of one image differ.
        assert not torch.equal(together[0], together[1])


TWEEDIE = {"start": "tweedie", "last_step": "tweedie"}


@pytest.mark.parametrize(
    ("fields", "noise_std", "for_all", "for_denoising"),
    [
        ({}, 0.9, 3 * (5 * 3 + 1), 9),
        ({"level_chain_steps": (5, 3, 1, 1, 2, 4)}, 0.9, 3 * 12 + 4, 9),
        # Starts below the topmost level, and one step at the end.
        (TWEEDIE, 0.9, 3 * (5 * 3 + 1) + 3 * 5 + 1, 9 + 2 + 2 + 1),
        # Between the topmost level and white noise: one gradient for the first start, and five for the others.
        (TWEEDIE, 5.0, 3 * (5 * 3 + 1) + 3 * 5 + 1, 18 + 1 + 5 + 1),
    ],
)
def test_a_network_is_asked_once_for_every_step_that_is_announced(
    fields: dict[str, Any], noise_std: float, for_all: int, for_denoising: int
) -> None:
    experiment = preset("digits")
    mcmc = replace(experiment.mcmc, num_chain_steps=3, **fields)
    experiment = replace(experiment, model=replace(experiment.model, width=4), mcmc=mcmc)
    engine = GradientEngine(build_network(experiment), EngineConfig())
    calls = 0

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        raw = engine.raw_at(level)

        def counted(y: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            return raw(y)

        return counted

    sampler = build_posterior_sampler(experiment, num_rounds=3)
    x = torch.zeros(2, 1, 8, 8)
    images = sampler.complete(raw_at, PhiloxNoise(0), torch.arange(2), x, ObservedPixels(x[0, 0] > 0))
    assert images.isfinite().all()
    assert calls == sampler.num_gradients() == for_all
    calls = 0
    sampler.denoise(raw_at, PhiloxNoise(0), torch.arange(2), x, noise_std)
    assert calls == sampler.num_gradients(noise_std) == for_denoising


def test_the_correlated_gaussian_agrees_with_autograd_and_with_torch() -> None:
    distribution = CorrelatedGaussian(X, pixels().covariance)
    y = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    value, gradient = distribution.log_density_and_grad(y)
    (expected,) = torch.autograd.grad(value.sum(), y)
    torch.testing.assert_close(gradient.detach(), expected)
    normalised = torch.distributions.MultivariateNormal(X, distribution.covariance).log_prob(y.flatten(1))
    torch.testing.assert_close(value - distribution.log_z(), normalised)
    # Bayes: the density of the whole is that of what is seen times that of the rest given it.
    point = y.detach()[0].flatten()
    given = distribution.given(EYE[OBSERVED], point[OBSERVED])
    rest = torch.distributions.MultivariateNormal(given.mean[~OBSERVED], given.covariance[~OBSERVED][:, ~OBSERVED])
    seen = torch.distributions.MultivariateNormal(X[OBSERVED], distribution.covariance[OBSERVED][:, OBSERVED])
    joint = rest.log_prob(point[~OBSERVED]) + seen.log_prob(point[OBSERVED])
    torch.testing.assert_close(joint, normalised[0].detach())
    torch.testing.assert_close(given.mean[OBSERVED], point[OBSERVED])
