"""Exact and learned densities of every noise level on a grid, and distances between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.recovery import Levels, scaled_density
from drl_dist.sampling.progressive import RawAtLevel
from drl_dist.toy.distributions import DataDistribution

_PARTS = 4
"""Points per side of a cell over which the exact density is averaged, because its edges are narrower than a cell."""


@dataclass(frozen=True)
class Grid:
    """Square cells over [-half_width, half_width]**2, with more than 99.9 % of every distribution and white noise.

    Masses on it are (cells, cells) float64 that sum to 1; the first index is the first coordinate.
    """

    half_width: float = 4.0
    cells: int = 160

    def centres(self, parts: int = 1) -> Tensor:
        """Centres of the cells along one side, each divided into `parts`, (cells * parts,) float64."""
        count = self.cells * parts
        return (torch.arange(count, dtype=torch.float64) + 0.5) * (2 * self.half_width / count) - self.half_width

    def points(self) -> Tensor:
        """Centres of the cells, (cells**2, 2) float64."""
        centres = self.centres()
        return torch.cartesian_prod(centres, centres)


def exact_masses(distribution: DataDistribution, ladder: NoiseLadder, t: int, grid: Grid) -> Tensor:
    """Cell masses of x_t = cumulative_scale_t x + cumulative_std_t e for data x, normalised within the grid.

    Args:
        distribution: distribution of the data x.
        ladder: the forward process.
        t: noise level, 0 to T.
        grid: cells of the masses.
    """
    marginal = distribution.affine(float(ladder.cumulative_scale[t]), float(ladder.cumulative_std[t]))
    fine = marginal.density_on_square(grid.centres(_PARTS))
    masses = fine.reshape(grid.cells, _PARTS, grid.cells, _PARTS).mean((1, 3))
    return masses / masses.sum()


def learned_masses(raw_at: RawAtLevel, levels: Levels, t: int, grid: Grid) -> Tensor:
    """Cell masses of x_t = y_t / transition_scale_t under exp f(y_t, t), normalised within the grid.

    Args:
        raw_at: the network.
        levels: scales of the levels, (T,) float32.
        t: noise level, 0 to T - 1.
        grid: cells of the masses.
    """
    y = (grid.points() * float(levels.transition_scale[t])).float()
    level = torch.full((len(y),), t)
    density = scaled_density(raw_at(level), levels.energy_scale[level])
    return torch.softmax(density(y)[0].double(), dim=0).reshape(grid.cells, grid.cells)


def total_variation(first: Tensor, second: Tensor) -> float:
    """Half the sum of absolute differences of two sets of masses: 0 for equal ones, 1 for disjoint ones."""
    return 0.5 * float((first - second).abs().sum())


def kl_divergence(first: Tensor, second: Tensor) -> float:
    """KL(first || second) in nats, for masses of one shape."""
    return float(torch.special.xlogy(first, first / second.clamp(min=1e-300)).sum())
