"""Annealed importance sampling between two unnormalised densities (Neal, 2001), down and back up.

Chains that start at draws from the upper density move through intermediate densities to the lower one. Their weights
are unbiased estimates of Z_lower / Z_upper, however badly the chains mix. The way up is the exact reversal of the way
down: the same transitions in the opposite order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.hmc import Hmc
from drl_dist.mcmc.kernel import ChainNoise, column
from drl_dist.mcmc.leapfrog import Point


class Annealed(NamedTuple):
    """Chains after a passage from one density to the next."""

    x: Tensor
    """(B, ...) positions of the chains."""
    log_weight: Tensor
    """(B,) float64; down, the mean of exp(log_weight) estimates Z_lower / Z_upper, up, Z_upper / Z_lower."""
    acceptance_rate: Tensor
    """(B,) float64, mean acceptance probability."""


class _Pair(NamedTuple):
    """Both densities at the positions of the chains."""

    upper: Tensor
    """(B,) log-density."""
    upper_gradient: Tensor
    lower: Tensor
    lower_gradient: Tensor

    def gap(self) -> Tensor:
        """log lower - log upper, (B,) float64."""
        return self.lower.double() - self.upper.double()


@dataclass
class _Bridge:
    """log p = (1 - beta) log upper + beta log lower; keeps both log-densities of its last evaluation."""

    upper: LogDensityAndGrad
    lower: LogDensityAndGrad
    beta: float = 0.0
    last: _Pair | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.last = _Pair(*self.upper(x), *self.lower(x))
        return self.mix(self.last)

    def mix(self, pair: _Pair) -> tuple[Tensor, Tensor]:
        """The log-density (B,) and its gradient (B, ...) from those of both ends."""
        return (
            torch.lerp(pair.upper, pair.lower, self.beta),
            torch.lerp(pair.upper_gradient, pair.lower_gradient, self.beta),
        )

    def at(self, x: Tensor) -> _Pair:
        """Both densities at x."""
        return _Pair(*self.upper(x), *self.lower(x))


def betas(upper_step: float, lower_step: float, num_bridges: int) -> list[float]:
    """The points 0 = beta_0 < ... < beta_K = 1 that divide the path between two densities into bridges.

    Step sizes are proportional to the widths of the densities. On the geometric path between two normal distributions
    the precision is (1 - beta) / width_upper**2 + beta / width_lower**2. The points are K equal steps of its logarithm,
    which are equally hard: the Fisher information of a width is constant in its logarithm. With equal steps of beta,
    nearly the whole change would lie in the first.

    Args:
        upper_step: step size at the upper density.
        lower_step: step size at the lower density.
        num_bridges: K.
    """
    log_ratio = 2 * math.log(upper_step / lower_step)
    if abs(log_ratio) < 1e-6:
        return [index / num_bridges for index in range(num_bridges + 1)]
    return [math.expm1(log_ratio * index / num_bridges) / math.expm1(log_ratio) for index in range(num_bridges + 1)]


def bridge_step(upper_step: float, lower_step: float, beta: float) -> float:
    """Step size at beta on the path, from the precision of normal distributions there; see `betas`."""
    return ((1 - beta) / upper_step**2 + beta / lower_step**2) ** -0.5


def anneal(
    upper: LogDensityAndGrad,
    lower: LogDensityAndGrad,
    x: Tensor,
    *,
    upper_step: float,
    lower_step: float,
    noise: ChainNoise,
    num_bridges: int,
    num_leapfrog_steps: int = 2,
    is_upward: bool = False,
) -> Annealed:
    """Move chains from the upper density to the lower one, or back.

    Down, bridge k = 1, ..., K adds log p_k(x) - log p_{k-1}(x) to the weight, then moves x by HMC on p_k; up, bridge
    k = K, ..., 1 moves x by HMC on p_k, then adds log p_{k-1}(x) - log p_k(x).

    Args:
        upper: log-density and gradient at beta = 0, in tensors that no later call of either density overwrites.
        lower: the same at beta = 1.
        x: (B, ...) draws from the density at the start.
        upper_step: leapfrog step at the upper density.
        lower_step: leapfrog step at the lower density.
        noise: random numbers of K chain steps.
        num_bridges: K, at least 1; each costs 2 * num_leapfrog_steps gradients, and the start 2.
        num_leapfrog_steps: leapfrog steps of each proposal.
        is_upward: move from the lower density to the upper one.
    """
    bridge = _Bridge(upper, lower)
    cuts = betas(upper_step, lower_step, num_bridges)
    order = list(range(1, num_bridges + 1))
    if is_upward:
        order.reverse()
    log_weight = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    accepted = torch.zeros_like(log_weight)
    pair = bridge.at(x)
    for k, numbers in zip(order, noise.steps(0, num_bridges, 1), strict=True):
        increment = cuts[k] - cuts[k - 1]
        if not is_upward:
            log_weight += increment * pair.gap()
        bridge.beta = cuts[k]
        step = x.new_full((len(x),), bridge_step(upper_step, lower_step, bridge.beta))
        kernel = Hmc(bridge, step, num_leapfrog_steps)
        state, info = kernel(Point(x, *bridge.mix(pair)), numbers)
        # HMC evaluates the proposal last, so where it is accepted nothing needs to be computed again.
        assert bridge.last is not None
        pair = _Pair(*(_where(info.is_accepted, new, old) for new, old in zip(bridge.last, pair, strict=True)))
        x = state.y
        accepted += info.acceptance_probability
        if is_upward:
            log_weight -= increment * pair.gap()
    return Annealed(x, log_weight, accepted / num_bridges)


def _where(condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    return torch.where(condition if chosen.dim() == 1 else column(condition, chosen), chosen, other)
