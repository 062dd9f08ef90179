"""A kernel of a user's that asks for several gradients in a step, away from where its chains are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import StepNoise, column


class Place(NamedTuple):
    y: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Leapfrog:
    """Two leapfrog steps from a new momentum, never rejected; the gradient at the end is kept for the next step."""

    density: LogDensityAndGrad
    step_size: Tensor
    noise_scale: float = 1.0
    num_uniforms: int = 0

    def init(self, y: Tensor) -> Place:
        return Place(y, self.density(y)[1])

    def __call__(self, state: Place, noise: StepNoise) -> tuple[Place, None]:
        step = column(self.step_size, state.y)
        y, gradient, momentum = state.y, state.gradient, self.noise_scale * noise.normal
        for _ in range(2):
            momentum = momentum + 0.5 * step * gradient
            y = y + step * momentum
            gradient = self.density(y)[1]
            momentum = momentum + 0.5 * step * gradient
        return Place(y, gradient), None
