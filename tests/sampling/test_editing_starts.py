"""Editing whose chains start around the mean of what they draw, and end without the noise of level 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.editing import denoising
from drl_dist.build import build_posterior_sampler
from drl_dist.config.presets import preset
from drl_dist.diffusion.ladder import linear_ladder
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.energy.analytic import CorrelatedGaussian
from drl_dist.sampling.inpainting import ObservedPixels
from drl_dist.sampling.tweedie import Tweedie
from tests.sampling.worlds import (
    EYE,
    LIMIT,
    NUM_PIXELS,
    OBSERVATIONS,
    OBSERVED,
    SHAPE,
    QuickNoise,
    X,
    distribution_of_completions,
    drawn,
    exact_raw,
    free_distribution,
    isotropic,
    pixels,
    posterior_sampler,
    worst_score,
)


@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_completions_have_the_distribution_of_chains_that_start_at_the_mean(name: str, averages: bool) -> None:
    sampler, raw_at = posterior_sampler(
        pixels(), ladder=linear_ladder(4, 0.2, 0.5), num_rounds=2, num_chain_steps=2, step_share=0.4
    )
    sampler = replace(sampler, start=Tweedie(sampler.levels, sampler.ladder), averages_noise=averages)
    projection = OBSERVATIONS[name][1]
    wanted = free_distribution(distribution_of_completions(sampler, pixels(), projection, X), projection)
    assert worst_score(drawn(name, sampler, raw_at, 20_000, 0), wanted) < LIMIT
    for mistaken in (replace(sampler, noise_scale=1.08), replace(sampler, start=None)):
        assert worst_score(drawn(name, mistaken, raw_at, 20_000, 1), wanted) > LIMIT


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_completions_by_long_steps_are_those_of_short_ones_if_each_uses_half_of_the_noise_before(name: str) -> None:
    ladder = linear_ladder(3, 0.2, 0.5)
    long, raw_at = posterior_sampler(pixels(), ladder=ladder, num_rounds=2, num_chain_steps=25, step_share=2.0)
    short, _ = posterior_sampler(pixels(), ladder=ladder, num_rounds=2, num_chain_steps=5000, step_share=0.01)
    projection = OBSERVATIONS[name][1]
    wanted = free_distribution(distribution_of_completions(short, pixels(), projection, X), projection)
    averaged = replace(long, averages_noise=True)
    assert worst_score(drawn(name, averaged, raw_at, 20_000, 0), wanted) < LIMIT
    assert worst_score(drawn(name, long, raw_at, 20_000, 1), wanted) > 2 * LIMIT


@pytest.mark.parametrize("noise_std", [0.015, 0.9, 9.0])
def test_the_start_between_levels_is_the_mean_where_the_data_vary_much_less_or_more(noise_std: float) -> None:
    sampler = build_posterior_sampler(preset("digits", "unet"))
    ladder, levels, start = sampler.ladder, sampler.levels, sampler.start
    level = sampler.start_level(noise_std)
    unit = float(levels.transition_scale[level] * ladder.cumulative_scale[level])
    below = float(ladder.cumulative_std[level] / ladder.cumulative_scale[level])
    assert start is not None
    for std, slope in ((1e-3 * below, (below / noise_std) ** 2), (1e3 * noise_std, 1.0)):
        if std > 1 and level == levels.num_levels - 1:
            continue  # above the topmost level, the data are taken to vary less than the noise
        data = CorrelatedGaussian(0 * X, std**2 * EYE)
        x_noisy = X.reshape(1, *SHAPE)
        made = start.draw_between(exact_raw(data, ladder, levels), x_noisy, level, noise_std, 0 * x_noisy)
        # x_T is taken to be white, though its noise has a variance of .993.
        torch.testing.assert_close(made, unit * slope * x_noisy, rtol=0.01, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("noise_std", [0.1, 0.9, 9.0])
def test_denoised_images_have_the_distribution_of_chains_that_start_at_the_mean(noise_std: float) -> None:
    # All pixels are alike, so that the exact recursion of a single one holds for each.
    experiment = replace(preset("digits", "unet"), mcmc=replace(preset("digits", "unet").mcmc, num_chain_steps=1))
    sampler = replace(build_posterior_sampler(experiment), end=None)
    variance = 0.25
    alike = CorrelatedGaussian(torch.zeros(NUM_PIXELS).double(), variance * EYE)
    slope, std = denoising(experiment, noise_std)[variance]
    scale, first_std = float(sampler.ladder.scale[0]), float(sampler.ladder.std[0])
    further = ((scale * noise_std) ** 2 - first_std**2) ** 0.5
    truth = alike.affine(scale, first_std).given(EYE, scale * X, further)
    wanted = CorrelatedGaussian(slope * truth.mean, std**2 * truth.covariance)
    raw_at = exact_raw(alike, sampler.ladder, sampler.levels)
    given = X.reshape(SHAPE).expand(20_000, *SHAPE)
    made = sampler.denoise(raw_at, QuickNoise(3), torch.arange(20_000), given, noise_std).flatten(1)
    assert worst_score(made, wanted) < LIMIT


def test_the_last_step_takes_the_noise_of_level_0_away() -> None:
    sampler, raw_at = posterior_sampler(pixels(), ladder=linear_ladder(3, 0.2, 0.5), num_chain_steps=4, step_share=0.4)
    tweedie = Tweedie(sampler.levels, sampler.ladder)
    lowest, x, ids = raw_at(torch.zeros(1, dtype=torch.int64)), X.reshape(1, *SHAPE), torch.arange(1)
    noisy, clean = (
        one.denoise(raw_at, PhiloxNoise(0), ids, x, 1.0) for one in (sampler, replace(sampler, end=tweedie))
    )
    torch.testing.assert_close(clean, tweedie.clean(lowest, float(sampler.levels.transition_scale[0]) * noisy))
    assert float((clean - noisy).abs().max()) > 0.05
    observation = OBSERVATIONS["pixels"][0]
    noisy, clean = (
        one.complete(raw_at, PhiloxNoise(0), ids, x, observation) for one in (sampler, replace(sampler, end=tweedie))
    )
    hidden = ~OBSERVED.reshape(1, *SHAPE)
    assert float((clean - noisy)[hidden].abs().min()) > 0
    assert torch.equal(clean[~hidden], x[~hidden])


@pytest.mark.parametrize("averages", [False, True])
def test_chains_leave_what_is_observed_where_it_is(averages: bool) -> None:
    sampler = build_posterior_sampler(preset("digits", "unet"), num_rounds=1)
    sampler = replace(sampler, start=None, end=None, num_chain_steps=3, averages_noise=averages)
    places = list[tuple[int, Tensor]]()

    def noted(level: Tensor) -> LogDensityAndGrad:
        density = isotropic(level)
        return lambda y: places.append((int(level[0]), y[0, 0, :, 4:])) or density(y)

    sampler.complete(
        noted, PhiloxNoise(0), torch.arange(1), torch.zeros(1, 1, 8, 8), ObservedPixels(torch.arange(8) > 3)
    )
    for t in range(sampler.levels.num_levels):
        first, *others = (observed for level, observed in places if level == t)
        assert len(others) == 2 and all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("averages", [False, True])
def test_no_number_of_the_noise_is_used_twice(averages: bool) -> None:
    sampler = build_posterior_sampler(preset("digits", "unet"), num_rounds=3)
    sampler = replace(sampler, end=None, averages_noise=averages)
    x, ids, noises = torch.zeros(1, 1, 8, 8), torch.arange(1), (QuickNoise(0), QuickNoise(0))
    sampler.complete(isotropic, noises[0], ids, x, ObservedPixels(x[0, 0] > 0))
    sampler.denoise(isotropic, noises[1], ids, x, 0.9)
    for noise in noises:
        asked = {purpose for purpose, *_ in noise.asked}
        assert Purpose.SAMPLE_START in asked
        assert (Purpose.SAMPLE_BEFORE in asked) == averages
        assert len(set(noise.asked)) == len(noise.asked)
