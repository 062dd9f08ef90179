"""The marginal densities of a model's noise levels, in the coordinates of x.

p(x_t) is proportional to exp(f(scale_t x_t, t)) with y_t = scale_t x_t, so that neighbours on the ladder have nearly
the same width, and Z of x_t is Z of y_t divided by scale_t**D. The paper takes ratios in y, where y_{T-1} can be far
too narrow as a proposal for y_{T-2} (`tests/likelihood/one_step.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from drl_dist.diffusion.noise import Noise, Purpose
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad, scaled_density
from drl_dist.likelihood.annealing import anneal
from drl_dist.likelihood.weights import resampled
from drl_dist.mcmc.kernel import KeyedChainNoise, root_mean_square
from drl_dist.sampling.progressive import RawAtLevel


class LevelPassage(NamedTuple):
    """Chains that have just passed between levels t and t + 1."""

    level: int
    """t"""
    x: Tensor
    """(B, ...) positions of the chains."""
    log_weight: Tensor
    """(B,) float64, log weight of this passage."""
    acceptance_rate: Tensor
    """(B,) float64, mean acceptance probability."""

    def numbers(self) -> Tensor:
        """(3, B) float64: log weight, acceptance rate, and per-pixel root mean square of x."""
        return torch.stack([self.log_weight, self.acceptance_rate, root_mean_square(self.x).double()])


@dataclass(frozen=True)
class Marginals:
    """p(x_0), ..., p(x_{T-1}) of a model, and the white noise of x_T above them.

    Args:
        raw_at: the network.
        levels: scales of the levels, (T,) float64 on the CPU.
    """

    raw_at: RawAtLevel
    levels: Levels

    @property
    def num_levels(self) -> int:
        """T."""
        return self.levels.num_levels

    def scale(self, t: int) -> float:
        """y_t = scale(t) * x_t; 1 for t = T."""
        return 1.0 if t == self.num_levels else float(self.levels.transition_scale[t])

    def y_density(self, t: int, sample_ids: Tensor) -> LogDensityAndGrad:
        """f(y, t), 0 <= t < T, for chains (B,); of white noise for t = T."""
        if t == self.num_levels:
            return white_noise
        raw_and_grad = self.raw_at(torch.full_like(sample_ids, t))
        scale = self.levels.energy_scale[t].to(sample_ids.device)

        def density(y: Tensor) -> tuple[Tensor, Tensor]:
            return scaled_density(raw_and_grad, scale.to(y.dtype).expand(len(y)))(y)

        return density

    def density(self, t: int, sample_ids: Tensor) -> LogDensityAndGrad:
        """log p(x_t) up to a constant, f(scale_t x, t), and its gradient; of white noise for t = T.

        Args:
            t: 0 to T.
            sample_ids: (B,) ids of the chains that it will be evaluated for.
        """
        y_density, scale = self.y_density(t, sample_ids), self.scale(t)

        def density(x: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = y_density(scale * x)
            return value, scale * gradient

        return density

    def descend(
        self,
        step_size: Sequence[float],
        noise: Noise,
        sample_ids: Tensor,
        shape: tuple[int, ...],
        *,
        num_bridges: int,
        num_leapfrog_steps: int = 2,
        dtype: torch.dtype = torch.float64,
    ) -> Iterator[LevelPassage]:
        """Move white noise from level T to level 0: exp of the summed log weights has the mean Z_0 / Z_T of x.

        Args:
            step_size: (T + 1,) leapfrog steps in x at every level, the last for white noise.
            noise: keyed by chain and level.
            sample_ids: (B,) int64, one for each chain.
            shape: shape of one image.
            num_bridges: K, densities and HMC steps per level.
            num_leapfrog_steps: leapfrog steps of each proposal.
            dtype: dtype of the chains.

        Yields:
            each level as soon as chains have passed it.
        """
        x = noise.normal(Purpose.PRIOR, sample_ids, 0, (0,), shape)[0].to(dtype)
        yield from self._pass(x, step_size, noise, sample_ids, num_bridges, num_leapfrog_steps, False)

    def ascend(
        self,
        x: Tensor,
        step_size: Sequence[float],
        noise: Noise,
        sample_ids: Tensor,
        *,
        num_bridges: int,
        num_leapfrog_steps: int = 2,
    ) -> Iterator[LevelPassage]:
        """Move x_0 from level 0 to level T, the exact reversal of `descend`.

        If x are draws from p(x_0), exp of the summed log weights has the mean Z_T / Z_0. For any x, f(x_0) plus the
        summed log weights less log Z_T is, on average, at most the log-density at x_0 of the distribution in which the
        chains of `descend` end (Burda, Grosse, Salakhutdinov, AISTATS 2015).

        Args:
            x: (B, ...); otherwise as `descend`.
        """
        yield from self._pass(x, step_size, noise, sample_ids, num_bridges, num_leapfrog_steps, True)

    def _pass(
        self,
        x: Tensor,
        step_size: Sequence[float],
        noise: Noise,
        sample_ids: Tensor,
        num_bridges: int,
        num_leapfrog_steps: int,
        is_upward: bool,
    ) -> Iterator[LevelPassage]:
        num_levels = self.num_levels
        if len(step_size) != num_levels + 1:
            raise ValueError(f"{len(step_size)} step sizes for {num_levels} levels and white noise")
        purpose = Purpose.REVERSE_CHAIN if is_upward else Purpose.SAMPLE_CHAIN
        for t in range(num_levels) if is_upward else reversed(range(num_levels)):
            passed = anneal(
                self.density(t + 1, sample_ids),
                self.density(t, sample_ids),
                x,
                upper_step=step_size[t + 1],
                lower_step=step_size[t],
                noise=KeyedChainNoise(noise, purpose, sample_ids, t, tuple(x.shape[1:]), x.dtype),
                num_bridges=num_bridges,
                num_leapfrog_steps=num_leapfrog_steps,
                is_upward=is_upward,
            )
            x = passed.x
            yield LevelPassage(t, *passed)


def draws(passage: Iterable[LevelPassage], noise: Noise, sample_ids: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Draws of x_0 from the model itself, approximately: ends of `Marginals.descend`, resampled by their weights.

    They come from p(x_0) as far as the weights are even; among few effective chains the same ends repeat, and the draws
    of a batch depend on each other.

    Args:
        passage: chains on their way from white noise down.
        noise: keyed by chain.
        sample_ids: (B,) int64, of the chains.

    Yields:
        the level, and where the chains are; the last one is 0 with the draws (B, ...).
    """
    total = torch.zeros(len(sample_ids), dtype=torch.float64, device=sample_ids.device)
    for part in passage:
        total += part.log_weight
        x = part.x
        if part.level == 0:
            offset = noise.uniform(Purpose.RESAMPLE, sample_ids[:1], 0, (0,), 1).flatten()
            x = x[resampled(total, offset)]
        yield part.level, x


def white_noise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density of N(0, I), up to its constant, and its gradient."""
    return -0.5 * x.square().flatten(1).sum(1), -x


def white_noise_log_z(num_dims: int) -> float:
    """Logarithm of the integral of exp(`white_noise`): D / 2 log(2 pi), in nats."""
    return 0.5 * num_dims * math.log(2 * math.pi)
