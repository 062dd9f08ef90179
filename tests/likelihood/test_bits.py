"""Grey levels, the change of variables, and bits."""

from __future__ import annotations

import math

import pytest
import torch

from drl_dist.build import build_ladder
from drl_dist.common.images import to_unit_range
from drl_dist.config.presets import preset
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.likelihood.bits import HALF_RANGE, bits_per_dim, dequantise, log_density_of_data, noisy_x_0


def test_a_uniform_density_costs_eight_bits() -> None:
    # Uniform over the 256 bins, whose width on the data scale is 1 / 127.5.
    num_dims = 12
    log_density = torch.full((3,), -num_dims * math.log(256 / HALF_RANGE), dtype=torch.float64)
    assert bits_per_dim(log_density, num_dims).tolist() == pytest.approx([8.0] * 3)


def test_dequantised_images_stay_in_their_bins() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    ids = torch.arange(4)
    found = dequantise(images, PhiloxNoise(0), ids)
    assert (found.dtype, found.shape) == (torch.float64, images.shape)
    # In grey levels from the training's x: inside half a level, spread over all of it.
    offset = (found - to_unit_range(images).double()) * HALF_RANGE
    assert float(offset.abs().max()) < 0.5 + 1e-4
    assert float(offset.std()) == pytest.approx(math.sqrt(1 / 12), rel=0.1)
    assert abs(float(offset.mean())) < 0.06
    assert torch.equal(found[1:2], dequantise(images[1:2], PhiloxNoise(0), ids[1:2]))
    assert not torch.equal(found[:1], dequantise(images[:1], PhiloxNoise(0), ids[1:2]))


def test_change_of_variables_is_to_the_power_of_the_dimensions() -> None:
    # y = a x for x ~ N(0, I): f(y) = -|y|**2 / (2 a**2), Z = (2 pi a**2)**(D / 2).
    num_dims, a = 5, 0.7
    x = torch.randn(4, num_dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unnormalised = -(a * x).square().sum(1) / (2 * a**2)
    log_z = 0.5 * num_dims * math.log(2 * math.pi * a**2)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(log_density_of_data(unnormalised, log_z, a, num_dims), expected)


def test_x_0_carries_the_ladders_first_noise() -> None:
    ladder = build_ladder(preset("digits").diffusion)
    x = torch.full((500, 1, 4, 4), 0.5, dtype=torch.float64)
    found = noisy_x_0(x, ladder, PhiloxNoise(1), torch.arange(500))
    residual = found - 0.5 * float(ladder.scale[0])
    assert found.dtype == torch.float64
    assert float(residual.std()) == pytest.approx(0.01, rel=0.03)
    assert abs(float(residual.mean())) < 4 * 0.01 / math.sqrt(8000)
