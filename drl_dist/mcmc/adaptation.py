"""Adaptation of step sizes, level by level, to a range of acceptance rates (section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import ChainNoise, Info, KernelAt, State
from drl_dist.mcmc.leapfrog import Point
from drl_dist.mcmc.settings import AdaptationConfig, KernelName

DensityName = Literal["conditional", "marginal"]

# One correction is delta <- delta * exp(gain * (rate - target)). Where the rate falls with delta as HMC's and MALA's
# do, the slope d rate / d log delta at .75 is about -.5 and -.7, so that an error shrinks to a tenth and less than a
# half of itself.
_GAIN = 2.0
_PROBE_FRACTION = 10
_MAX_ROUNDING = 0.5
"""Nats in the last place of the log-density above which accepting is a matter of rounding."""


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """Step sizes of a model's noise levels, and how they were found.

    Raises:
        ValueError: values that no schedule has.
    """

    step_size: tuple[float, ...]
    """(T,) delta of a leapfrog step; (T + 1,) of marginal densities."""
    acceptance_rate: tuple[float, ...]
    """(T,), or (T + 1,), that the step sizes were accepted for."""
    kernel: KernelName
    """Whose acceptance it was."""
    num_leapfrog_steps: int
    """Leapfrog steps of each proposal; 0 where that differs from proposal to proposal."""
    num_chains: int
    num_steps: int
    """Over which the rates were averaged."""
    seed: int
    """That keyed the noise."""
    density: DensityName = "conditional"
    """conditional: of y_t given x_{t+1}, for long runs; marginal: of x_t, for log Z, with a last entry for x_T."""

    def __post_init__(self) -> None:
        if not self.step_size or len(self.step_size) != len(self.acceptance_rate):
            raise ValueError(f"{len(self.step_size)} step sizes and {len(self.acceptance_rate)} acceptance rates")
        if not all(0 < value < math.inf for value in self.step_size):
            raise ValueError("a step size is not a positive number")
        if not all(0 <= value <= 1 for value in self.acceptance_rate):
            raise ValueError("an acceptance rate is not in [0, 1]")
        if min(self.num_leapfrog_steps, self.seed) < 0 or min(self.num_chains, self.num_steps) < 1:
            raise ValueError("a count is negative, or there are no chains or no steps")

    @property
    def num_levels(self) -> int:
        """T."""
        return len(self.step_size) - (self.density == "marginal")


@dataclass
class AdaptingChains:
    """Chains of one level on which step sizes are tried; they continue from where the last trial left them.

    Args:
        kernel_at: what is adapted.
        density: the level's.
        y: (B, ...) where the chains are.
        noise: the chains' numbers.
        next_step: number of the first step, which keys its numbers.
    """

    kernel_at: KernelAt
    density: LogDensityAndGrad
    y: Tensor
    noise: ChainNoise
    next_step: int = 0
    rounding: Tensor | float = 0.0
    """Nats between neighbouring values of the log-density in its dtype, averaged over the chains."""

    def run(self, step_size: float, num_steps: int) -> Tensor:
        """Make `num_steps` steps of this size; the acceptance probability averaged over steps and chains, ()
        float64."""
        kernel = self.kernel_at(self.density, self.y.new_full((len(self.y),), step_size))
        state: State = kernel.init(self.y)
        total = torch.zeros((), dtype=torch.float64, device=self.y.device)
        numbers = self.noise.steps(self.next_step, self.next_step + num_steps, kernel.num_uniforms)
        for step_noise in numbers:
            state, info = kernel(state, step_noise)
            total += _probability(info).mean()
        self.y, self.next_step = state.y, self.next_step + num_steps
        if isinstance(state, Point):
            self.rounding = state.log_density.abs().mean() * torch.finfo(state.log_density.dtype).eps
        return total / num_steps


def adapt_step_size(
    batches: Sequence[AdaptingChains],
    first_step_size: float,
    config: AdaptationConfig,
    *,
    what: str = "step size",
    observe: Callable[[float, float], None] | None = None,
) -> tuple[float, float]:
    """A step size whose acceptance rate, averaged over all chains and `config.num_steps` steps, lies in the wanted
    range.

    Step sizes are corrected in proportion to what is wrong with their rate. They are tried on a tenth of the steps
    first, and the whole number decides; so the search ends, after `config.max_rounds` corrections at the latest.

    Args:
        batches: the chains, in parts that fit into memory; they are left where the last trial ended.
        first_step_size: where to start.
        config: the wanted range, how many steps, how many corrections.
        what: is adapted, for the error message.
        observe: called with each step size that was tried and its rate.

    Returns:
        The step size and its acceptance rate.

    Raises:
        UserError: no step size that was tried has such a rate, or the log-density is so large a number that its dtype
            cannot distinguish it before a step from after it.
    """
    num_chains = sum(len(batch.y) for batch in batches)
    target = (config.lowest_rate + config.highest_rate) / 2

    def rate_of(step_size: float, num_steps: int) -> float:
        # One number for the host to wait for, per trial and batch.
        sums = [float(batch.run(step_size, num_steps)) * len(batch.y) for batch in batches]
        rate = sum(sums) / num_chains
        if observe is not None:
            observe(step_size, rate)
        return rate

    step_size, rate = first_step_size, math.nan
    for _ in range(config.max_rounds):
        for num_steps in (max(1, config.num_steps // _PROBE_FRACTION), config.num_steps):
            rate = rate_of(step_size, num_steps)
            if not config.contains(rate):
                break
        else:
            _check_rounding(batches, what)
            return step_size, rate
        step_size *= math.exp(_GAIN * (rate - target))
    _check_rounding(batches, what)
    raise UserError(
        what,
        got=f"an acceptance rate of {rate:.3g} near {step_size:.3g} after {config.max_rounds} corrections",
        expected=f"a rate in [{config.lowest_rate:g}, {config.highest_rate:g}]",
        remedy="check that the density and its gradient are finite, or adapt with more chains or steps",
    )


def _check_rounding(batches: Sequence[AdaptingChains], what: str) -> None:
    for batch in batches:
        rounding = float(batch.rounding)
        if rounding > _MAX_ROUNDING:
            dtype = str(batch.y.dtype).removeprefix("torch.")
            raise UserError(
                what,
                got=f"log-densities that {dtype} rounds by {rounding:.2g} nats",
                expected=f"less than {_MAX_ROUNDING:g} nats, so that energy errors are not rounding",
                remedy="compute in float64",
            )


def _probability(info: Info | None) -> Tensor:
    if info is None:
        raise ValueError("a kernel that never rejects has no acceptance rate to adapt")
    return info.acceptance_probability
