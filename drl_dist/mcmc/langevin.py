"""Unadjusted Langevin dynamics (equations 4, 7 and 17)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import Kernel, StepNoise, column


class Position(NamedTuple):
    """Chains that remember nothing but where they are."""

    y: Tensor
    """(B, ...)"""


class Progress(NamedTuple):
    """Chains of different lengths."""

    y: Tensor
    """(B, ...)"""
    num_left: Tensor
    """(B,) steps that each chain has still to make; 0 or less once it has come to its end."""


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
class UnequalChains:
    """Chains side by side of which each makes its own number of steps of a kernel and then stays where it is.

    Gradients are computed of all chains as long as one moves: without a look at the levels of the batch, which would
    wait for the device, nor batches of many sizes, for each of which a network is compiled, or captured, anew.

    Args:
        kernel: moves chains that have not come to their end.
        num_chain_steps: (B,) int64 K of each chain.
    """

    kernel: Kernel[Position]
    num_chain_steps: Tensor
    num_uniforms: int = 0

    def init(self, y: Tensor) -> Progress:
        """See `Kernel.init`."""
        return Progress(y, self.num_chain_steps)

    def __call__(self, state: Progress, noise: StepNoise) -> tuple[Progress, None]:
        """See `Kernel`."""
        moved, _ = self.kernel(Position(state.y), noise)
        return Progress(torch.where(column(state.num_left > 0, state.y), moved.y, state.y), state.num_left - 1), None
