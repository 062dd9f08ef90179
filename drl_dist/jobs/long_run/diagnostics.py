"""Convergence diagnostics of chains: effective sample size and split R-hat, by ArviZ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_DRAWS = 8
"""Steps of a chain below which neither statistic means anything: halves of four."""


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How well the chains of one level mix; over all traced quantities and laws."""

    num_laws: int
    """Groups of chains that draw from one law each."""
    chains_per_law: int
    ess_min: float
    """Smallest bulk effective sample size of a law."""
    ess_median: float
    ess_per_step: float
    """Median effective sample size over the number of draws of a law."""
    r_hat_max: float | None
    """Largest split R-hat; near 1 where chains, and halves of chains, agree. None if nothing moved."""
    r_hat_median: float | None


def mixing(trace: NDArray[np.floating], *, is_one_law: bool) -> Mixing | None:
    """Bulk ESS (Vehtari et al., 2021) and split R-hat (Gelman et al., 2013) of traced chains.

    Chains of a conditional density each have an x_noisy, and so a law, of their own: only the halves of one chain can
    be compared with each other. Chains at a marginal level share one law and are compared with one another as well.

    Args:
        trace: (num_steps, B, quantities).
        is_one_law: whether all chains draw from one law.

    Returns:
        None for fewer than `MIN_DRAWS` steps.
    """
    from arviz_stats.base.array import array_stats  # takes seconds, and brings scipy

    num_steps = len(trace)
    if num_steps < MIN_DRAWS:
        return None
    # (laws, chains of a law, steps, quantities)
    chains = np.asarray(trace, dtype=np.float64).transpose(1, 0, 2)
    laws = chains[None] if is_one_law else chains[:, None]
    moved = np.ptp(laws, axis=(1, 2)) > 0
    sizes = array_stats.ess(laws, chain_axis=1, draw_axis=2, method="bulk")
    # What never moved is one draw, however often it was repeated.
    sizes = np.where(moved, sizes, 1.0)
    # ArviZ compares chains, two at least: the halves are made here, and not halved again.
    half = num_steps // 2
    halves = np.concatenate([laws[:, :, :half], laws[:, :, -half:]], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # two halves that each stand still, apart: infinite
        r_hats = np.asarray(array_stats.rhat(halves, chain_axis=1, draw_axis=2, method="identity"))[moved]
    draws_per_law = laws.shape[1] * num_steps
    return Mixing(
        num_laws=laws.shape[0],
        chains_per_law=laws.shape[1],
        ess_min=float(sizes.min()),
        ess_median=float(np.median(sizes)),
        ess_per_step=float(np.median(sizes)) / draws_per_law,
        r_hat_max=float(r_hats.max()) if moved.any() else None,
        r_hat_median=float(np.median(r_hats)) if moved.any() else None,
    )
