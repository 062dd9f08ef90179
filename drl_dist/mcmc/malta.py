"""The Metropolis-adjusted Langevin algorithm with truncated drift (Roberts & Tweedie, 1996; Atchade, 2006)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import Info, StepNoise, column
from drl_dist.mcmc.leapfrog import Point, energy_error, kinetic_energy, locate, metropolis, select


@dataclass(frozen=True)
class Malta:
    """MALA whose drift delta**2 / 2 * g is never longer than `longest` times the typical length of the noise.

    Where the gradient is steep, MALA's drift throws chains so far that nothing is accepted; a truncated one keeps them
    moving. It proposes y' = y + delta**2 / 2 * D(y) + delta * e with D = g * min(1, limit / |g|), and accepts by the
    ratio of `Mala` with D for g. One gradient a step.

    Args:
        density: log p and its gradient g.
        step_size: (B,) delta, as of `UnadjustedLangevin`.
        longest: of the drift, in units of delta * sqrt(D), the root mean square length of delta * e.
    """

    density: LogDensityAndGrad
    step_size: Tensor
    longest: float = 1.0

    @property
    def num_uniforms(self) -> int:
        """See `Kernel.num_uniforms`."""
        return 1

    def init(self, y: Tensor) -> Point:
        """See `Kernel.init`; one gradient."""
        return locate(self.density, y)

    def __call__(self, state: Point, noise: StepNoise) -> tuple[Point, Info]:
        """See `Kernel`."""
        half = 0.5 * column(self.step_size, state.y)
        here = self._drift(state)
        proposal = locate(self.density, state.y + 2 * half * (half * here + noise.normal))
        backwards = noise.normal + half * (here + self._drift(proposal))
        error = energy_error(
            kinetic_energy(backwards) - proposal.log_density.double(),
            kinetic_energy(noise.normal) - state.log_density.double(),
        )
        info = metropolis(error, noise.uniform[:, 0], num_leapfrog_steps=1)
        return select(info.is_accepted, proposal, state), info

    def _drift(self, point: Point) -> Tensor:
        """D, (B, ...)."""
        gradient = point.gradient.flatten(1)
        limit = 2 * self.longest * gradient.shape[1] ** 0.5 / self.step_size
        return point.gradient * column((limit / gradient.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0), point.gradient)
