"""The Metropolis-adjusted Langevin algorithm (Roberts & Tweedie, 1996)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import Info, StepNoise, column
from drl_dist.mcmc.leapfrog import Point, energy_error, kinetic_energy, locate, metropolis, select


@dataclass(frozen=True)
class Mala:
    """A step of unadjusted Langevin dynamics as a proposal, y' ~ q(y'|y) = N(y + delta**2 / 2 * g(y), delta**2).

    It is accepted with probability min(1, p(y') q(y|y') / (p(y) q(y'|y))). With y' = y + delta**2 / 2 * g + delta * e,
    log q(y'|y) = -|e|**2 / 2 and log q(y|y') = -|e + delta / 2 * (g + g')|**2 / 2, up to the same constant: what
    Hamiltonian Monte Carlo with one leapfrog step calls kinetic energy. One gradient a step.

    Args:
        density: log p and its gradient g.
        step_size: (B,) delta, as of `UnadjustedLangevin`.
    """

    density: LogDensityAndGrad
    step_size: Tensor

    @property
    def num_uniforms(self) -> int:
        """See `Kernel.num_uniforms`."""
        return 1

    def init(self, y: Tensor) -> Point:
        """See `Kernel.init`; one gradient."""
        return locate(self.density, y)

    def __call__(self, state: Point, noise: StepNoise) -> tuple[Point, Info]:
        """See `Kernel`."""
        step = column(self.step_size, state.y)
        proposal = locate(self.density, state.y + 0.5 * step.square() * state.gradient + step * noise.normal)
        backwards = noise.normal + (0.5 * step) * (state.gradient + proposal.gradient)
        error = energy_error(
            kinetic_energy(backwards) - proposal.log_density.double(),
            kinetic_energy(noise.normal) - state.log_density.double(),
        )
        info = metropolis(error, noise.uniform[:, 0], num_leapfrog_steps=1)
        return select(info.is_accepted, proposal, state), info
