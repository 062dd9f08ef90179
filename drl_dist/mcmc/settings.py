"""What options of jobs say about chains; importing it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from drl_dist.common.errors import UserError

KernelName = Literal["hmc", "mala", "nuts"]
"""Name of a kernel that leaves the density as it is: what long runs and step-size files may name. They are the adjusted
rows of `drl_dist.mcmc.kernels.KERNELS`."""
Start = Literal["normal_approximation", "x_noisy"]
"""Start of a level's chains: a draw from the normal approximation, or x_noisy as in training."""


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig:
    """How step sizes are adapted; the paper's numbers."""

    num_chains: int = 1000
    """Chains that run down the ladder together."""
    num_steps: int = 100
    """Steps over which the acceptance rate of a level is averaged, for all chains."""
    lowest_rate: float = 0.6
    """Acceptance rate below which the step size is made smaller."""
    highest_rate: float = 0.9
    """Acceptance rate above which the step size is made larger."""
    max_rounds: int = 60
    """Corrections of one level's step size after which it counts as impossible."""

    def __post_init__(self) -> None:
        rules: list[tuple[str, object, str, bool]] = [
            ("num_chains", self.num_chains, "at least 1", self.num_chains >= 1),
            ("num_steps", self.num_steps, "at least 1", self.num_steps >= 1),
            (
                "lowest_rate and highest_rate",
                (self.lowest_rate, self.highest_rate),
                "0 < lowest < highest < 1",
                0 < self.lowest_rate < self.highest_rate < 1,
            ),
            ("max_rounds", self.max_rounds, "at least 1", self.max_rounds >= 1),
        ]
        for name, got, expected, holds in rules:
            if not holds:
                raise UserError(f"adaptation field {name}", got=got, expected=expected, remedy="correct the field")

    def contains(self, rate: float) -> bool:
        """Whether an acceptance rate needs no correction; not a number does."""
        return self.lowest_rate <= rate <= self.highest_rate
