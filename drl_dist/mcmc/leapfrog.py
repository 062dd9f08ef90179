"""Hamiltonian dynamics: what the Metropolis-adjusted kernels have in common.

The potential energy is -log p(y), momenta have unit mass, and the step size delta is that of the position. Unadjusted
Langevin dynamics has the same delta: y + delta**2 / 2 * grad log p(y) + delta * e is where one leapfrog step of size
delta ends that starts with momentum e (equation 4).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import Info, column

DIVERGENCE = 1000.0
"""Energy error, in nats, above which a trajectory has left the region that matters (as in Stan)."""


class Point(NamedTuple):
    """Where chains are and what the density says there, so that no step asks for it again."""

    y: Tensor
    """(B, ...)"""
    log_density: Tensor
    """(B,)"""
    gradient: Tensor
    """(B, ...)"""


def locate(density: LogDensityAndGrad, y: Tensor) -> Point:
    """The point at y (B, ...); one gradient."""
    return Point(y, *density(y))


def select(condition: Tensor, chosen: Point, other: Point) -> Point:
    """The chosen point of each chain where `condition` (B,) holds, else the other one."""
    mask = column(condition, chosen.y)
    return Point(
        torch.where(mask, chosen.y, other.y),
        torch.where(condition, chosen.log_density, other.log_density),
        torch.where(mask, chosen.gradient, other.gradient),
    )


def leapfrog(density: LogDensityAndGrad, point: Point, momentum: Tensor, step_size: Tensor) -> tuple[Point, Tensor]:
    """One leapfrog step: half a kick, a drift, half a kick; one gradient.

    Args:
        density: log p and its gradient, in tensors that its next call leaves alone.
        point: where the step starts.
        momentum: (B, ...).
        step_size: (B,) delta; negative goes back in time.
    """
    step = column(step_size, momentum)
    momentum = momentum + (0.5 * step) * point.gradient
    point = locate(density, point.y + step * momentum)
    return point, momentum + (0.5 * step) * point.gradient


def kinetic_energy(momentum: Tensor) -> Tensor:
    """|momentum|**2 / 2 of each chain, (B,) float64: images have too many pixels for differences of float32 sums."""
    return 0.5 * momentum.double().square().flatten(1).sum(1)


def total_energy(point: Point, momentum: Tensor) -> Tensor:
    """-log p(y) + |momentum|**2 / 2, which the exact dynamics keeps, (B,) float64."""
    return kinetic_energy(momentum) - point.log_density.double()


def energy_error(after: Tensor, before: Tensor) -> Tensor:
    """The change of the total energy, (B,); infinite where it is no number, so that nothing there is accepted."""
    error = after - before
    return torch.where(error.isfinite(), error, torch.inf)


def metropolis(error: Tensor, uniform: Tensor, num_leapfrog_steps: int) -> Info:
    """Accept each chain's proposal with probability min(1, exp(-error)).

    Args:
        error: (B,) energy error of the proposal.
        uniform: (B,) in (0, 1).
        num_leapfrog_steps: that led to the proposal.
    """
    probability = (-error).clamp(max=0.0).exp()
    return Info(
        is_accepted=uniform < probability,
        acceptance_probability=probability,
        energy_error=error,
        is_divergent=error > DIVERGENCE,
        num_leapfrog_steps=torch.full_like(error, num_leapfrog_steps, dtype=torch.int64),
    )
