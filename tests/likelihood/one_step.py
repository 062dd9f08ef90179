"""What tests of the partition function compare with: whole passages, and the paper's ratios in one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.likelihood.marginals import LevelPassage, Marginals


@dataclass(frozen=True)
class Passage:
    """Chains that passed along the whole ladder; row t belongs to the passage between levels t and t + 1."""

    x: Tensor
    """(B, ...) final positions of the chains."""
    log_weight: Tensor
    """(T, B) float64."""
    acceptance_rate: Tensor
    """(T, B) float64."""
    root_mean_square: Tensor
    """(T, B) float64, per pixel, of x at the end of the passage."""

    @classmethod
    def collect(cls, parts: Iterable[LevelPassage]) -> Passage:
        """Run `Marginals.descend` or `Marginals.ascend` to its end and collect what it yields."""
        x, rows = None, {}
        for part in parts:
            x = part.x
            rows[part.level] = part.numbers()
        if x is None:
            raise ValueError("a passage of no levels")
        log_weight, acceptance_rate, size = torch.stack([rows[t] for t in sorted(rows)], 1)
        return cls(x, log_weight, acceptance_rate, size)


def one_step_log_weights(marginals: Marginals, x: Sequence[Tensor], sample_ids: Tensor) -> Tensor:
    """f(y, t) - f(y, t + 1) at y = y_{t+1}: the logarithms that equation 46 averages, in the paper's coordinates.

    Where y_{t+1} is far narrower than y_t, as below a conditional top level (scale .0228 with T = 6), the mean of their
    exponentials is dominated by samples that are never drawn; their effective sample size shows it.

    Args:
        marginals: marginal densities of the model.
        x: T + 1 tensors (M, ...), samples of x_0, ..., x_T.
        sample_ids: (M,) int64.

    Returns:
        (T, M) float64; equation 48 sums their `log_mean_exp`.
    """
    rows: list[Tensor] = []
    for t in range(marginals.num_levels):
        y = marginals.scale(t + 1) * x[t + 1]
        here, above = (marginals.y_density(level, sample_ids)(y)[0] for level in (t, t + 1))
        rows.append(here.double() - above.double())
    return torch.stack(rows)
