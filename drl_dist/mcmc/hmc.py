"""Hamiltonian Monte Carlo (Neal, 2011), the long-run sampler of section 4.2."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import Info, StepNoise
from drl_dist.mcmc.leapfrog import Point, energy_error, leapfrog, locate, metropolis, select, total_energy


@dataclass(frozen=True)
class Hmc:
    """A fresh momentum e, L leapfrog steps, then each chain by itself accepts or stays: L gradients a step.

    Args:
        density: log p and its gradient.
        step_size: (B,) delta of a leapfrog step.
        num_leapfrog_steps: L.
    """

    density: LogDensityAndGrad
    step_size: Tensor
    num_leapfrog_steps: int = 2

    @property
    def num_uniforms(self) -> int:
        """See `Kernel.num_uniforms`."""
        return 1

    def init(self, y: Tensor) -> Point:
        """See `Kernel.init`; one gradient."""
        return locate(self.density, y)

    def __call__(self, state: Point, noise: StepNoise) -> tuple[Point, Info]:
        """See `Kernel`."""
        point, momentum = state, noise.normal
        for _ in range(self.num_leapfrog_steps):
            point, momentum = leapfrog(self.density, point, momentum, self.step_size)
        error = energy_error(total_energy(point, momentum), total_energy(state, noise.normal))
        info = metropolis(error, noise.uniform[:, 0], self.num_leapfrog_steps)
        return select(info.is_accepted, point, state), info
