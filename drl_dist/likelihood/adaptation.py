"""Step sizes of HMC on the marginal densities, level by level."""

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
from drl_dist.mcmc.adaptation import AdaptationConfig, AdaptingChains, StepSizeSchedule, adapt_step_size
from drl_dist.mcmc.hmc import Hmc
from drl_dist.mcmc.kernel import KeyedChainNoise
from drl_dist.sampling.long_run import ADAPTATION_IDS

LIKELIHOOD_IDS = ADAPTATION_IDS + MAX_SAMPLE_IDS // 4
"""The first sample id of everything here, so that generated images and long runs of the same seed see other noise."""
ADAPTING_IDS = LIKELIHOOD_IDS + MAX_SAMPLE_IDS // 8
"""The first sample id of the chains that adapt."""
MAX_ADAPTED = 40
"""Levels, about, at which step sizes are adapted; between them they are interpolated."""


class AdaptedLevel(NamedTuple):
    """What was found at one level."""

    level: int
    """0 to T, T being white noise."""
    step_size: float
    acceptance_rate: float


@dataclass(frozen=True, kw_only=True)
class MarginalAdaptation:
    """Step sizes in x of every level, and of the white noise above them, on chains that run down while they adapt.

    Those of a long run would not do: there the recovery term narrows the density of every level. Of a thousand levels
    about `MAX_ADAPTED` are adapted, see `adapted_levels`; the logarithms of the others, and their rates, are
    interpolated.

    Args:
        marginals: of the model.
        ladder: of the model.
        shape: of one image.
        seed: keys the noise.
        config: how many chains and steps, and the wanted acceptance rates.
        num_leapfrog_steps: of each proposal.
        batch_size: chains that are computed together.
        device: of the chains.
        dtype: of the chains.
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
            UserError: a level at which no step size has an acceptance rate in the wanted range.
        """

        def kernel_at(density: LogDensityAndGrad, step_size: Tensor) -> Hmc:
            return Hmc(density, step_size, self.num_leapfrog_steps)

        noise, num_levels, dtype = PhiloxNoise(self.seed), self.marginals.num_levels, self.dtype
        ids = torch.arange(ADAPTING_IDS, ADAPTING_IDS + self.config.num_chains, device=self.device)
        parts = ids.split(self.batch_size)
        xs = [noise.normal(Purpose.PRIOR, part, 0, (0,), self.shape)[0].to(dtype) for part in parts]
        step_size = 1.0
        for t in adapted_levels(self.ladder):
            # White noise has no level of its own: the counter may have no room for a level T.
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

    def step_sizes(self, found: Iterable[AdaptedLevel]) -> StepSizeSchedule:
        """Step sizes of all T + 1 levels, of kind ``marginal``, interpolated between those that `run` yields."""
        levels, step_sizes, rates = zip(*found, strict=True)
        places = _places(self.ladder)
        known = [places[t] for t in levels]
        logarithms = np.interp(places, known, np.log(step_sizes))
        return StepSizeSchedule(
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

    The next one is where t, or the logarithm of the noise that x_t carries, has changed by a share of its whole change;
    the narrowest directions of p(x_t) are as wide as that noise.
    """
    places, num_levels = _places(ladder), ladder.num_levels
    chosen = [num_levels]
    for t in reversed(range(num_levels)):
        if t == 0 or (places[t - 1] - places[chosen[-1]]) * MAX_ADAPTED > 2:
            chosen.append(t)
    return chosen


def _places(ladder: NoiseLadder) -> list[float]:
    """(T + 1,) how far down the ladder each level lies, 0 for T and 2 for 0."""
    log_std, num_levels = ladder.cumulative_std.log(), ladder.num_levels
    by_noise = (log_std[-1] - log_std) / (log_std[-1] - log_std[0])
    by_number = 1 - torch.arange(num_levels + 1, dtype=torch.float64) / num_levels
    return (by_noise + by_number).tolist()
