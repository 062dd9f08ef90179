"""Adaptation of HMC step sizes on the marginal densities, level by level."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.noise import MAX_SAMPLE_IDS, PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.likelihood.marginals import Marginals
from drl_dist.mcmc.adaptation import AdaptingChains, StepSizes, adapt_step_size
from drl_dist.mcmc.hmc import Hmc
from drl_dist.mcmc.kernel import KeyedChainNoise
from drl_dist.mcmc.settings import AdaptationConfig
from drl_dist.sampling.long_run import ADAPTATION_IDS

LIKELIHOOD_IDS = ADAPTATION_IDS + MAX_SAMPLE_IDS // 4
"""First sample id used in this package: its noise differs from that of images and long runs with the same seed."""
ADAPTING_IDS = LIKELIHOOD_IDS + MAX_SAMPLE_IDS // 8
"""First sample id of the chains that adapt step sizes."""
MAX_ADAPTED = 40
"""Approximate number of levels at which step sizes are adapted; between them they are interpolated."""


class AdaptedLevel(NamedTuple):
    """Adapted step size of one level."""

    level: int
    """t, from 0 to T; T is white noise."""
    step_size: float
    acceptance_rate: float


@dataclass(frozen=True, kw_only=True)
class MarginalAdaptation:
    """Adapts step sizes in x for every level, and for the white noise above, on chains that run down the ladder.

    Step sizes of a long run do not fit here: its recovery term narrows the density of every level. Of a thousand levels
    about `MAX_ADAPTED` are adapted, see `adapted_levels`; for the others the logarithm of the step size and the
    acceptance rate are interpolated.

    Args:
        marginals: marginal densities of the model.
        ladder: ladder of the model.
        shape: shape of one image.
        seed: keys the noise.
        config: numbers of chains and steps, and the range of acceptance rates to reach.
        num_leapfrog_steps: leapfrog steps of each proposal.
        batch_size: chains that are computed together.
        device: device of the chains.
        dtype: dtype of the chains.
    """

    marginals: Marginals
    ladder: NoiseLadder
    shape: tuple[int, ...]
    seed: int
    config: AdaptationConfig
    num_leapfrog_steps: int = 2
    batch_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float64

    def run(self) -> Iterator[AdaptedLevel]:
        """Adapt level by level, T first.

        Raises:
            UserError: at some level no step size reaches the range of acceptance rates.
        """

        def kernel_at(density: LogDensityAndGrad, step_size: Tensor) -> Hmc:
            return Hmc(density, step_size, self.num_leapfrog_steps)

        noise, num_levels, dtype = PhiloxNoise(self.seed), self.marginals.num_levels, self.dtype
        ids = torch.arange(ADAPTING_IDS, ADAPTING_IDS + self.config.num_chains, device=self.device)
        parts = ids.split(self.batch_size)
        xs = [noise.normal(Purpose.PRIOR, part, 0, (0,), self.shape)[0].to(dtype) for part in parts]
        step_size = 1.0
        for t in adapted_levels(self.ladder):
            # The noise counter may have no room for a level T, so white noise uses a purpose of its own.
            purpose, level = (Purpose.SAMPLE_CHAIN, t) if t < num_levels else (Purpose.REVERSE_CHAIN, 0)
            batches = [
                AdaptingChains(
                    kernel_at,
                    self.marginals.density(t, part),
                    x,
                    KeyedChainNoise(noise, purpose, part, level, self.shape, dtype),
                )
                for part, x in zip(parts, xs, strict=True)
            ]
            step_size, rate = adapt_step_size(batches, step_size, self.config, what=f"step size of level {t}")
            xs = [batch.y for batch in batches]
            yield AdaptedLevel(t, step_size, rate)

    def step_sizes(self, found: Iterable[AdaptedLevel]) -> StepSizes:
        """Step sizes of all T + 1 levels, of kind ``marginal``, interpolated between those that `run` yields."""
        levels, step_sizes, rates = zip(*found, strict=True)
        places = _places(self.ladder)
        known = [places[t] for t in levels]
        logarithms = np.interp(places, known, np.log(step_sizes))
        return StepSizes(
            step_size=tuple(np.exp(logarithms).tolist()),
            acceptance_rate=tuple(np.interp(places, known, rates).tolist()),
            kernel="hmc",
            num_leapfrog_steps=self.num_leapfrog_steps,
            num_chains=self.config.num_chains,
            num_steps=self.config.num_steps,
            seed=self.seed,
            density="marginal",
        )


def adapted_levels(ladder: NoiseLadder) -> list[int]:
    """Levels at which step sizes are adapted, T first and 0 last.

    They are spaced about evenly in the sum of two measures of depth: t, and the logarithm of the standard deviation of
    the noise in x_t, which is the width of p(x_t) in its narrowest directions.
    """
    places, num_levels = _places(ladder), ladder.num_levels
    chosen = [num_levels]
    for t in reversed(range(num_levels)):
        if t == 0 or (places[t - 1] - places[chosen[-1]]) * MAX_ADAPTED > 2:
            chosen.append(t)
    return chosen


def _places(ladder: NoiseLadder) -> list[float]:
    """Depth of each level on the ladder, (T + 1,): 0 for level T, 2 for level 0."""
    log_std, num_levels = ladder.cumulative_std.log(), ladder.num_levels
    by_noise = (log_std[-1] - log_std) / (log_std[-1] - log_std[0])
    by_number = 1 - torch.arange(num_levels + 1, dtype=torch.float64) / num_levels
    return (by_noise + by_number).tolist()
