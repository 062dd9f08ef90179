"""Noise ladders and pairs, against the numbers of the paper's setting and the distributions of the forward process."""

from __future__ import annotations

import math

import pytest
import torch

from drl_dist.diffusion.ladder import composed_ladder, draw_levels, draw_pairs, geometric_ladder, linear_ladder
from drl_dist.diffusion.noise import PhiloxNoise
from tests.reference import t6_ladder


def test_the_t6_ladder_is_the_released_one() -> None:
    ladder = composed_ladder()
    scale, std = t6_ladder()
    torch.testing.assert_close(ladder.scale, torch.tensor(scale, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(ladder.std, torch.tensor(std, dtype=torch.float64), rtol=1e-9, atol=0)
    expected = [0.0100, 0.3238, 0.5862, 0.7785, 0.8980, 0.9603]
    assert ladder.cumulative_std[:6].tolist() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("num_levels", [1, 2, 6, 100, 501, 502, 999])
def test_a_composed_ladder_of_any_length_is_finite_and_ends_in_white_noise(num_levels: int) -> None:
    ladder = composed_ladder(num_levels)
    assert ladder.num_levels == num_levels
    assert bool((ladder.std > 0).all()) and bool((ladder.scale > 0).all())
    torch.testing.assert_close(ladder.scale**2 + ladder.std**2, torch.ones(num_levels + 1, dtype=torch.float64))
    assert float(ladder.cumulative_scale[-1]) == pytest.approx(float(composed_ladder().cumulative_scale[-1]), rel=1e-9)


def test_lengths_that_cannot_be_are_refused() -> None:
    for num_levels in (0, 1000):
        with pytest.raises(ValueError, match="levels"):
            composed_ladder(num_levels)


def test_linear_variances_rise_linearly() -> None:
    ladder = linear_ladder(6, 1e-4, 0.5)
    steps = (ladder.std**2).diff()
    torch.testing.assert_close(steps, steps[:1].expand(6))


@pytest.mark.parametrize("num_levels", [1, 6, 10, 1000])
def test_a_geometric_ladder_multiplies_the_noise_by_one_factor(num_levels: int) -> None:
    ladder = geometric_ladder(num_levels, 1e-4, 140.0)
    assert ladder.num_levels == num_levels
    ratio = ladder.cumulative_std**2 / ladder.cumulative_scale**2
    assert (float(ratio[0]), float(ratio[-1])) == pytest.approx((1e-4, 140.0), rel=1e-9)
    factor = torch.full((num_levels,), 1.4e6 ** (1 / num_levels), dtype=torch.float64)
    torch.testing.assert_close(ratio[1:] / ratio[:-1], factor, rtol=1e-9, atol=0)
    # The largest curvature of log p(y_t | x_{t+1}) in units of the smallest.
    largest = ladder.std[1:] ** -2 + ladder.noise_in_y(ladder.scale[1:]) ** -2
    torch.testing.assert_close(largest * ladder.std[1:] ** 2, factor, rtol=1e-9, atol=0)


def test_pairs_follow_the_forward_process() -> None:
    ladder, noise = composed_ladder(), PhiloxNoise(1)
    count = 20_000
    ids = torch.arange(count)
    x = torch.full((count, 1, 2, 2), 0.7, dtype=torch.float64)
    for t in range(6):
        scale = ladder.scale[1:].clone()
        pairs = draw_pairs(noise, ids, x, torch.full((count,), t), ladder, scale)
        # y_t = a x_t with x_t ~ N(abar x, sbar**2); x_{t+1} - y_t ~ N(0, sigma**2), independent of y_t.
        error = 5 / math.sqrt(4 * count)
        deviation = (pairs.y_pos - scale[t] * ladder.cumulative_scale[t] * 0.7) / (scale[t] * ladder.cumulative_std[t])
        fresh = (pairs.x_noisy - pairs.y_pos) / ladder.std[t + 1]
        for numbers in (deviation, fresh):
            assert abs(numbers.mean()) < error
            assert abs(numbers.square().mean() - 1) < math.sqrt(2) * error
        assert abs((deviation * fresh).mean()) < error


def test_a_marginal_top_level_is_not_scaled() -> None:
    ladder, noise, ids = composed_ladder(), PhiloxNoise(1), torch.arange(3)
    x, level = torch.rand(3, 1, 2, 2, dtype=torch.float64), torch.full((3,), 5)
    scaled = draw_pairs(noise, ids, x, level, ladder, ladder.scale[1:])
    marginal = draw_pairs(noise, ids, x, level, ladder, torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(scaled.y_pos, marginal.y_pos * ladder.scale[6])
    assert torch.equal(scaled.x_noisy, marginal.x_noisy)


def test_levels_are_uniform() -> None:
    counts = torch.bincount(draw_levels(PhiloxNoise(0), torch.arange(60_000), 6), minlength=6).double()
    assert len(counts) == 6
    assert ((counts - 10_000).square() / 10_000).sum() < 25
