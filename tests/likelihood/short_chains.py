"""How sharp energies become that are trained by short chains: exact for Gaussian data in one direction.

    python -m tests.likelihood.short_chains

prints the learned precision over the true one at each conditional level, K = 30: of the released setting, of steps by
the curvature's bound on the same ladder, and of both on the geometric ladder.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from drl_dist.build import build_ladder, build_levels
from drl_dist.config.presets import preset
from drl_dist.config.tree import Experiment

VARIANCES = (1e-4, 1e-3, 0.01, 0.0687, 0.25)
"""Variances of the data in the direction looked at."""


def end_variance(precision: float, recovery: float, step_size: float, num_steps: int, start_variance: float) -> float:
    """Variance of y after unadjusted Langevin steps from x_{t+1} on -precision y^2 / 2 - recovery (x_{t+1} - y)^2 / 2.

    Each step multiplies the distance to the conditional mean by r and adds noise of variance step_size^2.
    """
    both = precision + recovery
    r = 1 - 0.5 * step_size**2 * both
    mean = recovery / both
    noise = step_size**2 * sum(r ** (2 * step) for step in range(num_steps))
    return (mean + (1 - mean) * r**num_steps) ** 2 * start_variance + noise


def precision_ratios(experiment: Experiment, variance: float) -> list[float]:
    """Learned over true precision at each conditional level, lowest first, once the chains' ends have the variance of
    the data: the smallest precision at which they do."""
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    found: list[float] = []
    for t in range(levels.num_levels):
        recovery = float(levels.recovery_precision[t])
        if recovery == 0:
            continue
        of_x = (float(ladder.cumulative_scale[t]) ** 2) * variance + float(ladder.cumulative_std[t]) ** 2
        wanted = float(levels.transition_scale[t]) ** 2 * of_x

        def excess(
            ratio: float,
            t: int = t,
            recovery: float = recovery,
            wanted: float = wanted,
        ) -> float:
            step_size, num_steps = float(levels.step_size[t]), experiment.mcmc.num_chain_steps
            return end_variance(ratio / wanted, recovery, step_size, num_steps, wanted + 1 / recovery) - wanted

        grid = np.geomspace(0.5, 1e4, 2000)
        above = next(number for number, ratio in enumerate(grid) if excess(ratio) < 0)
        low, high = float(grid[above - 1]), float(grid[above])
        while high / low > 1 + 1e-9:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        found.append(low)
    return found


if __name__ == "__main__":
    released = preset("cifar10")
    by_bound = replace(released, mcmc=replace(released.mcmc, step_rule="bound"))
    geometric = replace(by_bound, diffusion=replace(by_bound.diffusion, ladder="geometric"))
    for name, experiment in (("released", released), ("bound", by_bound), ("geometric, bound", geometric)):
        for value in VARIANCES:
            print(f"{name}, v = {value:g}:", *(f"{ratio:.3g}" for ratio in precision_ratios(experiment, value)))
