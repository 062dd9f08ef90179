"""Chains of y_t given x_{t+1}, from wherever they start: each a dataclass, whose name and fields tell what it does.

All steps are c times the root of a covariance: with a basis, that of data which are normal in it; without, the least
covariance that y_t can have in any direction, as mcmc.step_rule bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.chains.model import BasisName, Place
from drl_dist.diffusion.recovery import conditional_density
from drl_dist.mcmc.kernel import StepNoise
from drl_dist.mcmc.mala import Mala


class Ended(NamedTuple):
    """Where chains ended."""

    y: Tensor
    gradient: Tensor | None
    """Of f_t, where the last one was computed: at y, or one move before; None of no chain."""


class Chain(Protocol):
    """A chain of one level."""

    def run(self, place: Place, y: Tensor, num_steps: int) -> Ended:
        """Move from y (B, C, H, W)."""
        ...


@dataclass(frozen=True)
class Langevin:
    """y <- y + c**2 / 2 R R grad log p + c R e; one gradient a step.

    With a basis the noise has the variance that leaves a normal distribution of covariance R R as it is: 1 - c**2 / 4
    of the usual.
    """

    c: float = 0.9
    basis: BasisName | None = None

    def run(self, place: Place, y: Tensor, num_steps: int) -> Ended:
        """See `Chain.run`."""
        gradient = None
        std = self.c * (1.0 if self.basis is None else (1 - self.c**2 / 4) ** 0.5)
        for step in range(num_steps):
            gradient = place.gradient(y)
            drift = place.spread(gradient + place.pull(y), self.basis)
            move = 0.5 * self.c**2 * drift + std * place.noise_scale * place.normal(step)
            y = y + place.spread(move, self.basis)
        return Ended(y, gradient)


@dataclass(frozen=True)
class Averaged:
    """As `Langevin`, with the mean of two successive noises: mcmc.kernel leimkuhler_matthews."""

    c: float = 1.4

    def run(self, place: Place, y: Tensor, num_steps: int) -> Ended:
        """See `Chain.run`."""
        gradient, before = None, place.normal_before()
        for step in range(num_steps):
            gradient, normal = place.gradient(y), place.normal(step)
            noise = 0.5 * self.c * place.noise_scale * (before + normal)
            y = y + place.spread(0.5 * self.c**2 * place.spread(gradient + place.pull(y), None) + noise, None)
            before = normal
        return Ended(y, gradient)


@dataclass(frozen=True)
class Underdamped:
    """Langevin dynamics with a momentum, which begins fresh at each level: BAOAB (Leimkuhler and Matthews, 2013), one
    gradient a step, for the last half kick would only change a momentum that is thrown away.

    Its draws of a normal distribution have the right variance at any stable c, unlike those of `Langevin`.
    """

    c: float = 1.2
    keep: float = 0.5
    """Share of the momentum that a step keeps: exp(-friction * time)."""
    basis: BasisName | None = None

    def run(self, place: Place, y: Tensor, num_steps: int) -> Ended:
        """See `Chain.run`."""
        gradient, momentum = None, place.noise_scale * place.normal_before()
        for step in range(num_steps):
            gradient = place.gradient(y)
            kick = self.c if step else 0.5 * self.c
            momentum = momentum + kick * place.spread(gradient + place.pull(y), self.basis)
            after = self.keep * momentum + (1 - self.keep**2) ** 0.5 * place.noise_scale * place.normal(step)
            y = y + place.spread(0.5 * self.c * (momentum + after), self.basis)
            momentum = after
        return Ended(y, gradient)


@dataclass(frozen=True)
class Frozen:
    """Several moves of `Langevin` with one gradient of f_t, in which only what x_{t+1} adds is computed afresh.

    With that too kept as it was they would be one move of a larger c.
    """

    c: float = 0.9
    num_moves: int = 2

    def run(self, place: Place, y: Tensor, num_steps: int) -> Ended:
        """See `Chain.run`."""
        gradient = None
        for step in range(num_steps):
            gradient = place.gradient(y)
            for move in range(self.num_moves):
                normal = place.noise_scale * place.normal(step * self.num_moves + move)
                drift = place.spread(gradient + place.pull(y), None)
                y = y + place.spread(0.5 * self.c**2 * drift + self.c * normal, None)
        return Ended(y, gradient)


@dataclass(frozen=True)
class Adjusted:
    """MALA: Langevin steps that are accepted or not; one gradient a step, and one where it starts."""

    c: float = 0.9

    def run(self, place: Place, y: Tensor, num_steps: int) -> Ended:
        """See `Chain.run`."""
        if num_steps == 0:
            return Ended(y, None)
        precision = torch.full((len(y),), place.model.precision(place.level))
        size = self.c * place.model.largest_precision(place.level) ** -0.5
        kernel = Mala(conditional_density(place.density, place.x_noisy, precision), torch.full((len(y),), size))
        state = kernel.init(y)
        for step in range(num_steps):
            state, _ = kernel(state, StepNoise(place.noise_scale * place.normal(step), place.uniform(step)))
        return Ended(state.y, state.gradient - place.pull(state.y))
