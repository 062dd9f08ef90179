"""Unadjusted Langevin dynamics (equations 4, 7 and 17), and a scheme for it that makes normal draws exactly as wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import Kernel, StepNoise, column


class Position(NamedTuple):
    """Chains that remember nothing but where they are."""

    y: Tensor
    """(B, ...)"""


class Moving(NamedTuple):
    """Chains that remember their last noise."""

    y: Tensor
    """(B, ...)"""
    normal: Tensor
    """(B, ...) standard normals, of which the next step uses half."""


class Progress(NamedTuple):
    """Chains of different lengths."""

    chains: Position | Moving
    """Where they are."""
    num_left: Tensor
    """(B,) steps that each chain has still to make; 0 or less once it has come to its end."""

    @property
    def y(self) -> Tensor:
        """(B, ...)"""
        return self.chains.y


@dataclass(frozen=True)
class UnadjustedLangevin:
    """y <- y + delta**2 / 2 * grad log p(y) + delta * noise_scale * e; one gradient a step, nothing is ever rejected.

    Args:
        density: log p and its gradient.
        step_size: (B,) delta.
        noise_scale: 1 samples; less than 1 sharpens.
    """

    density: LogDensityAndGrad
    step_size: Tensor
    noise_scale: float = 1.0
    num_uniforms: int = 0

    def init(self, y: Tensor) -> Position:
        """See `Kernel.init`."""
        return Position(y)

    def __call__(self, state: Position, noise: StepNoise) -> tuple[Position, None]:
        """See `Kernel`."""
        y = state.y
        _, gradient = self.density(y)
        step = column(self.step_size, y)
        return Position(y + 0.5 * step.square() * gradient + (self.noise_scale * step) * noise.normal), None


@dataclass(frozen=True)
class LeimkuhlerMatthews:
    """y <- y + delta**2 / 2 * grad log p(y) + delta * noise_scale * (e_before + e) / 2; one gradient a step.

    The steps of `UnadjustedLangevin` with the mean of two successive normals (Leimkuhler and Matthews, "Rational
    construction of stochastic numerical methods for molecular sampling", 2013). Where log p is quadratic
    its draws have the right variance at any stable step size, 0 < delta**2 P < 4 with P the curvature, while those of
    `UnadjustedLangevin` have 1 / (1 - delta**2 P / 4) times that variance.

    Args:
        density: log p and its gradient.
        step_size: (B,) delta.
        noise_scale: 1 samples; less than 1 sharpens.
        before: (B, ...) standard normals, the noise of the step before the first; none by default.
    """

    density: LogDensityAndGrad
    step_size: Tensor
    noise_scale: float = 1.0
    before: Tensor | None = None
    num_uniforms: int = 0

    def init(self, y: Tensor) -> Moving:
        """See `Kernel.init`."""
        return Moving(y, torch.zeros_like(y) if self.before is None else self.before)

    def __call__(self, state: Moving, noise: StepNoise) -> tuple[Moving, None]:
        """See `Kernel`."""
        y = state.y
        _, gradient = self.density(y)
        step = column(self.step_size, y)
        normal = 0.5 * (state.normal + noise.normal)
        y = y + 0.5 * step.square() * gradient + (self.noise_scale * step) * normal
        return Moving(y, noise.normal), None


@dataclass(frozen=True)
class UnequalChains:
    """Chains side by side of which each makes its own number of steps of a kernel and then stays where it is.

    Gradients are computed of all chains as long as one moves: without a look at the levels of the batch, which would
    wait for the device, nor batches of many sizes, for each of which a network is compiled, or captured, anew.

    Args:
        kernel: moves chains that have not come to their end.
        num_chain_steps: (B,) int64 K of each chain.
    """

    kernel: Kernel[Any]
    num_chain_steps: Tensor
    num_uniforms: int = 0

    def init(self, y: Tensor) -> Progress:
        """See `Kernel.init`."""
        return Progress(self.kernel.init(y), self.num_chain_steps)

    def __call__(self, state: Progress, noise: StepNoise) -> tuple[Progress, None]:
        """See `Kernel`."""
        moved, _ = self.kernel(state.chains, noise)
        y = torch.where(column(state.num_left > 0, state.y), moved.y, state.y)
        return Progress(moved._replace(y=y), state.num_left - 1), None
