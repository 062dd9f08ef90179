"""Unadjusted Langevin dynamics (equations 4, 7 and 17)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.mcmc.kernel import Info, State
from drl_dist.recovery import LogDensityAndGrad


@dataclass(frozen=True)
class UnadjustedLangevin:
    """y <- y + delta**2 / 2 * grad log p(y) + delta * noise_scale * e.

    Args:
        density: log p and its gradient.
        step_size: (B,) delta.
        noise_scale: 1 samples; less than 1 sharpens.
    """

    density: LogDensityAndGrad
    step_size: Tensor
    noise_scale: float = 1.0

    def __call__(self, state: State, noise: Tensor) -> tuple[State, Info]:
        """One gradient, one move; nothing is ever rejected."""
        y = state.y
        _, gradient = self.density(y)
        step = self.step_size.reshape((-1,) + (1,) * (y.dim() - 1))
        moved = y + 0.5 * step.square() * gradient + (self.noise_scale * step) * noise
        return State(moved), Info(is_accepted=torch.ones(len(y), dtype=torch.bool, device=y.device))
