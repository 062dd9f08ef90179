"""The normal approximation to the conditional density, as a sampler (section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import StepNoise, column
from drl_dist.mcmc.langevin import Position


@dataclass(frozen=True)
class NormalApproximation:
    """y ~ N(x_noisy + sigma**2 * grad f(x_noisy), spread**2), one gradient; equations 11 and 12, where spread = sigma.

    It is a transition *from x_noisy*, where the gradient of the recovery term vanishes, so f may be the marginal
    density or the conditional one. It is meant to be made once: a second step would start from y as if that were
    x_noisy.

    Args:
        density: f and its gradient.
        std: (B,) sigma_{t+1}.
        noise_scale: 1 samples; less than 1 sharpens.
        spread: (B,) standard deviation of the draw; sigma_{t+1} by default.
    """

    density: LogDensityAndGrad
    std: Tensor
    noise_scale: float = 1.0
    spread: Tensor | None = None

    @property
    def num_uniforms(self) -> int:
        """See `Kernel.num_uniforms`."""
        return 0

    def init(self, y: Tensor) -> Position:
        """See `Kernel.init`; y is x_noisy."""
        return Position(y)

    def __call__(self, state: Position, noise: StepNoise) -> tuple[Position, None]:
        """See `Kernel`."""
        _, gradient = self.density(state.y)
        std = column(self.std, state.y)
        spread = std if self.spread is None else column(self.spread, state.y)
        return Position(state.y + std.square() * gradient + (self.noise_scale * spread) * noise.normal), None
