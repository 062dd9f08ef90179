"""A denoising diffusion model (Ho et al., 2020): what the same arithmetic buys without an energy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from drl_dist.diffusion.ladder import draw_levels
from drl_dist.diffusion.noise import PhiloxNoise, Purpose

NUM_LEVELS = 1000
_FIRST_VARIANCE, _LAST_VARIANCE = 1e-4, 0.02


def kept_signal() -> Tensor:
    """Share of the data's variance in y_t at each level, (T,) float64."""
    return (1 - torch.linspace(_FIRST_VARIANCE, _LAST_VARIANCE, NUM_LEVELS, dtype=torch.float64)).cumprod(0)


class Ddpm:
    """T = 1000 linear variances; the network predicts the noise.

    Args:
        h: noisy images (B, C, H, W) and their levels (B,) int64 -> the noise in them.
        seed: of all noise, which is keyed by the images' positions and numbers.
    """

    def __init__(self, h: Callable[[Tensor, Tensor], Tensor], seed: int) -> None:
        self._h, self._noise = h, PhiloxNoise(seed)
        self._kept = kept_signal()

    def loss(self, x: Tensor, positions: Tensor) -> Tensor:
        """Mean squared error of the noise predicted, at a random level for each image.

        Args:
            x: (B, C, H, W) in [-1, 1].
            positions: (B,) int64, in the stream of samples.
        """
        level = draw_levels(self._noise, positions, NUM_LEVELS)
        noise = self._noise.normal(Purpose.BASE, positions, level, (0,), x.shape[1:])[0]
        kept = self._kept[level].reshape(-1, 1, 1, 1)
        y = kept.sqrt().float() * x + (1 - kept).sqrt().float() * noise
        return (self._h(y, level) - noise).square().mean()

    @torch.no_grad()
    def draw(self, sample_ids: Tensor, shape: tuple[int, ...], num_steps: int) -> Tensor:
        """Images, float32 (B, *shape).

        All 1000 steps are the ancestral sampler; fewer are evenly spread and make no noise (DDIM).

        Args:
            sample_ids: (B,) int64, keys of the noise.
            shape: of one image.
            num_steps: evaluations of the network.
        """
        levels = torch.linspace(NUM_LEVELS - 1, 0, num_steps).round().long().tolist()
        x = self._noise.normal(Purpose.PRIOR, sample_ids, 0, (0,), shape)[0]
        for now, after in zip(levels, [*levels[1:], None], strict=True):
            kept, kept_after = float(self._kept[now]), 1.0 if after is None else float(self._kept[after])
            noise = self._h(x, torch.full_like(sample_ids, now))
            clean = ((x - (1 - kept) ** 0.5 * noise) / kept**0.5).clamp(-1, 1)
            noise = (x - kept**0.5 * clean) / (1 - kept) ** 0.5
            variance = (1 - kept_after) / (1 - kept) * (1 - kept / kept_after) if num_steps == NUM_LEVELS else 0.0
            x = kept_after**0.5 * clean + max(0.0, 1 - kept_after - variance) ** 0.5 * noise
            if variance:
                x = x + variance**0.5 * self._noise.normal(Purpose.SAMPLE_CHAIN, sample_ids, now, (0,), shape)[0]
        return x
