"""Unadjusted Langevin dynamics (equations 4, 7 and 17)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import StepNoise, column


class Position(NamedTuple):
    """Chains that remember nothing but where they are."""

    y: Tensor
    """(B, ...)"""


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
