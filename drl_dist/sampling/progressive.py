"""Progressive sampling (Algorithm 2): from white noise down the ladder of conditional densities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.mcmc.kernel import KeyedChainNoise, run_chain
from drl_dist.mcmc.langevin import UnadjustedLangevin
from drl_dist.noise import Noise, Purpose
from drl_dist.recovery import Levels, LogDensityAndGrad, conditional_density, scaled_density

RawAtLevel = Callable[[Tensor], LogDensityAndGrad]
"""Levels (B,) -> the raw output and its gradient as a function of y, with all that is fixed computed once."""


@dataclass(frozen=True)
class ProgressiveSampler:
    """Algorithm 2.

    Args:
        levels: (T,) scales and step sizes.
        num_chain_steps: K.
        noise_scale: factor on the Langevin noise.
    """

    levels: Levels
    num_chain_steps: int
    noise_scale: float

    def sample(self, raw_at: RawAtLevel, noise: Noise, sample_ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Generated x_0.

        Args:
            raw_at: the network.
            noise: its numbers for image i depend on i alone, so images do not depend on their batch.
            sample_ids: (B,) int64.
            shape: of one image, (C, H, W).

        Returns:
            float32 (B, C, H, W), about in [-1, 1].
        """
        return self.sample_levels(raw_at, noise, sample_ids, shape)[-1]

    def sample_levels(self, raw_at: RawAtLevel, noise: Noise, sample_ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The whole way: x_T, x_{T-1}, ..., x_0, float32 (T+1, B, C, H, W); arguments as `sample`."""
        x = noise.normal(Purpose.PRIOR, sample_ids, 0, (0,), shape)[0]
        stages = [x]
        for t in reversed(range(self.levels.num_levels)):
            level = torch.full_like(sample_ids, t)
            here = self.levels.to(x.device, x.dtype).at(level)
            density = conditional_density(scaled_density(raw_at(level), here.energy_scale), x, here.recovery_precision)
            kernel = UnadjustedLangevin(density, here.step_size, self.noise_scale)
            numbers = KeyedChainNoise(noise, Purpose.SAMPLE_CHAIN, sample_ids, level, shape)
            x = run_chain(kernel, x, numbers, self.num_chain_steps).y / self.levels.transition_scale[t]
            stages.append(x)
        return torch.stack(stages)
