"""Between two images: exact ends, blends that are standard normal, and every noise of the sampler blended."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_network, build_sampler
from drl_dist.config.presets import preset
from drl_dist.config.tree import EngineConfig, McmcConfig
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.energy.analytic import Gaussian
from drl_dist.sampling.interpolation import InterpolatedNoise
from drl_dist.training.chain import GradientEngine

FIRST, SECOND = torch.tensor([4, 7]), torch.tensor([2, 2**40])
WEIGHTS = torch.linspace(0, 1, 5, dtype=torch.float64)


def blends(seed: int = 0) -> InterpolatedNoise:
    return InterpolatedNoise(PhiloxNoise(seed), FIRST, SECOND, WEIGHTS)


def test_the_ends_are_the_two_images_to_the_bit() -> None:
    experiment = preset("digits")
    experiment = dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, width=8),
        mcmc=McmcConfig(num_chain_steps=5),
    )
    network = build_network(experiment)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    raw_at, sampler, shape = GradientEngine(network, EngineConfig()).raw_at, build_sampler(experiment), (1, 8, 8)

    alone = InterpolatedNoise(PhiloxNoise(6), FIRST[:1], SECOND[:1], torch.tensor([0.0, 1.0]))
    ends = sampler.sample_levels(raw_at, alone, alone.sample_ids, shape)
    originals = sampler.sample_levels(raw_at, PhiloxNoise(6), torch.stack([FIRST[0], SECOND[0]]), shape)
    assert torch.equal(ends, originals)

    noise = blends(6)
    rows = sampler.sample(raw_at, noise, noise.sample_ids, shape).reshape(2, 5, *shape)
    for column, ids in ((0, FIRST), (4, SECOND)):
        same_shape = ids.repeat_interleave(5)
        originals = sampler.sample(raw_at, PhiloxNoise(6), same_shape, shape).reshape(2, 5, *shape)
        assert torch.equal(rows[:, column], originals[:, column])
    assert not torch.equal(rows[:, 0], rows[:, 4])
    assert bool((rows[:, 1:] - rows[:, :-1]).flatten(2).abs().amax(2).gt(1e-3).all())


@pytest.mark.parametrize("level", [0, torch.full((10,), 5)])
@pytest.mark.parametrize("purpose", [Purpose.PRIOR, Purpose.SAMPLE_CHAIN])
def test_every_number_is_on_the_arc_between_those_of_the_ends(purpose: Purpose, level: Tensor | int) -> None:
    noise = blends()
    numbers = noise.normal(purpose, noise.sample_ids, level, (3, 29), (2, 3)).reshape(2, 2, 5, 2, 3)
    of_two = level if isinstance(level, int) else level[:2]
    first, second = (PhiloxNoise(0).normal(purpose, ids, of_two, (3, 29), (2, 3)) for ids in (FIRST, SECOND))
    assert torch.equal(numbers[:, :, 0], first)
    assert torch.equal(numbers[:, :, 4], second)
    for column, angle in ((1, math.pi / 8), (2, math.pi / 4), (3, 3 * math.pi / 8)):
        wanted = math.cos(angle) * first + math.sin(angle) * second
        torch.testing.assert_close(numbers[:, :, column], wanted)


@pytest.mark.parametrize("seed", range(10))
def test_blends_are_standard_normal(seed: int) -> None:
    count = 20_000
    weight = 0.3
    noise = InterpolatedNoise(PhiloxNoise(seed), torch.tensor([0]), torch.tensor([1]), torch.tensor([0.0, weight, 1.0]))
    start, blend, end = noise.normal(Purpose.PRIOR, noise.sample_ids, 0, (0,), (count,))[0].double()
    assert abs(float(blend.mean())) < 4.5 / count**0.5
    assert abs(float(blend.square().mean()) - 1) < 4.5 * (2 / count) ** 0.5
    assert abs(float(blend.pow(4).mean()) - 3) < 4.5 * (96 / count) ** 0.5
    # Linear blends, which lose variance, would not pass.
    linear = (1 - weight) * start + weight * end
    assert abs(float(linear.square().mean()) - 1) > 4 * 4.5 * (2 / count) ** 0.5


def test_the_sampler_blends_all_of_its_noise() -> None:
    # On a Gaussian around 0 the sampler is linear in its noise: an image left out of the blend would show.
    def raw_at(level: Tensor) -> LogDensityAndGrad:
        return Gaussian(torch.tensor(0.0), 2.0).log_density_and_grad

    noise = blends()
    sampler = build_sampler(preset("digits"))
    stages = sampler.sample_levels(raw_at, noise, noise.sample_ids, (1, 4, 4)).reshape(7, 2, 5, 1, 4, 4)
    for column, weight in enumerate(WEIGHTS.tolist()):
        angle = weight * math.pi / 2
        wanted = math.cos(angle) * stages[:, :, 0] + math.sin(angle) * stages[:, :, 4]
        torch.testing.assert_close(stages[:, :, column], wanted, rtol=1e-4, atol=1e-4)


def test_uniform_numbers_stay_uniform() -> None:
    count = 20_000
    noise = InterpolatedNoise(PhiloxNoise(0), torch.tensor([0]), torch.tensor([1]), torch.tensor([0.0, 0.4, 1.0]))
    numbers = noise.uniform(Purpose.CHOICE, noise.sample_ids, 0, (0,), count)[0]
    for row, image in ((0, 0), (2, 1)):
        original = PhiloxNoise(0).uniform(Purpose.CHOICE, torch.tensor([image]), 0, (0,), count)[0, 0]
        assert torch.equal(numbers[row], original)
    blend = numbers[1].sort().values
    steps = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    # Kolmogorov and Smirnov's statistic; 1.95 has one chance in a thousand.
    assert float((blend - steps).abs().max()) * count**0.5 < 1.95
    assert bool(((blend > 0) & (blend < 1)).all())


def test_a_pair_is_two_images() -> None:
    with pytest.raises(ValueError, match="pairs must be of two images"):
        InterpolatedNoise(PhiloxNoise(0), torch.tensor([1, 2]), torch.tensor([3, 2]), WEIGHTS)
    with pytest.raises(ValueError, match="weights must lie in"):
        InterpolatedNoise(PhiloxNoise(0), FIRST, SECOND, torch.tensor([0.0, 1.1]))
