"""A kernel of your own: copy it, change it, and train or sample with ``--mcmc.kernel my_kernel:MyKernel``."""

from typing import NamedTuple

from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import StepNoise


class State(NamedTuple):
    """What chains carry from step to step: where they are, and whatever a kernel would otherwise compute twice."""

    y: Tensor


class MyKernel:
    """y <- y + delta**2 / 2 * grad log p(y) + delta * noise_scale * e, for all chains of a batch at once.

    Args:
        density: y (B, C, H, W) -> log p (B,) and its gradient (B, C, H, W).
        step_size: (B,) delta of each chain.
        noise_scale: factor on the noise.
    """

    num_uniforms = 0  # uniform numbers that each chain needs per step, in noise.uniform

    def __init__(self, density: LogDensityAndGrad, step_size: Tensor, noise_scale: float) -> None:
        self.density, self.noise_scale = density, noise_scale
        self.step = step_size[:, None, None, None]

    def init(self, y: Tensor) -> State:
        """The state of chains at y."""
        return State(y)

    def __call__(self, state: State, noise: StepNoise) -> tuple[State, None]:
        """Move every chain once."""
        _, gradient = self.density(state.y)
        y = state.y + 0.5 * self.step.square() * gradient + self.noise_scale * self.step * noise.normal
        return State(y), None
