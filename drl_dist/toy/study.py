"""Fitting and measuring: the same data learned by diffusion recovery likelihood and short-run maximum likelihood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from drl_dist.common.amounts import counted
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.sampling.progressive import RawAtLevel
from drl_dist.toy.density import Grid, exact_masses, kl_divergence, learned_masses, total_variation
from drl_dist.toy.distributions import DataDistribution
from drl_dist.toy.training import ToyModel, train

NEAR = 0.15
"""Distance within which a point counts as on the data; the distributions' own widths are about half of it."""

NUM_SAMPLES = 2000
NUM_LONG = 200
_NUM_DATA = 8000
_FIRST_DATA_ID = 1 << 40
"""First sample id of data for comparison; training counts its ids from 0 and stays below."""

OnProgress = Callable[[int, str], None]
"""Callback that receives the number of further chain steps done, and a note."""


@dataclass(frozen=True)
class Fit:
    """Result of learning data with one method."""

    model: ToyModel
    stages: Tensor
    """(T+1, B, 2) x_T, ..., x_0: samples by the chain of training."""
    long_run: Tensor
    """(B, 2) x_0 by the same chains, each `lengthen` times as long."""
    marginal_run: Tensor
    """(B, 2) x_0 after `num_long` further steps from samples, on f(y, 0) alone: shows the learned density itself."""
    lengthen: int
    num_long: int
    """Chain steps per level of the long runs."""
    learned: list[Tensor]
    """Cell masses of x_t, by level t from 0 to T - 1."""
    exact: list[Tensor]
    """The same of the data, by level t from 0 to T."""

    @property
    def total_variations(self) -> list[float]:
        """Total variation between learned and exact density of x_t, by level t; each in [0, 1]."""
        return [total_variation(self.exact[t], masses) for t, masses in enumerate(self.learned)]

    @property
    def kl_divergence(self) -> float:
        """KL divergence of the learned density of x_0 from the exact one, in nats."""
        return kl_divergence(self.exact[0], self.learned[0])


def data_points(distribution: DataDistribution, count: int = _NUM_DATA) -> Tensor:
    """Data points (count, 2) that are not used in training."""
    return distribution.sample(PhiloxNoise(0), _FIRST_DATA_ID + torch.arange(count))


def share_off(points: Tensor, data: Tensor, distance: float = NEAR) -> float:
    """The share of points (B, 2) that have no data point within `distance`."""
    # Points that are not finite are far from everything.
    return float((~(torch.cdist(points, data).amin(dim=1) <= distance)).double().mean())


def misplaced_share(points: Tensor, masses: Tensor, grid: Grid) -> float:
    """Total variation between the distribution of points and the expected one, over squares of side 1, in [0, 1].

    Squares are used because few points tell nothing about cells; 200 independent points of the checkerboard have about
    .08 by chance.

    Args:
        points: (B, 2); those outside the grid, or not finite, are counted as misplaced.
        masses: (cells, cells), expected masses of the grid's cells.
        grid: grid of the masses, with a whole number of cells per unit.
    """
    side = round(2 * grid.half_width)
    expected = masses.reshape(side, grid.cells // side, side, grid.cells // side).sum((1, 3))
    square = ((points + grid.half_width).floor()).nan_to_num(nan=-1.0)
    is_inside = ((square >= 0) & (square < side)).all(1)
    index = square[is_inside].long()
    found = torch.bincount(index[:, 0] * side + index[:, 1], minlength=side**2).double() / len(points)
    nowhere = 1 - float(is_inside.double().mean())
    return total_variation(found, expected.flatten()) + 0.5 * nowhere


def num_chain_steps(experiment: Experiment, lengthen: int) -> int:
    """Number of chain steps that `fit` reports: those of training and of both long runs."""
    long_runs = lengthen * (experiment.diffusion.num_levels + 1)
    return (experiment.train.num_steps + long_runs) * experiment.mcmc.num_chain_steps


def fit(
    distribution: DataDistribution,
    experiment: Experiment,
    label: str,
    grid: Grid,
    *,
    lengthen: int = 100,
    on_progress: OnProgress = lambda items, note: None,
) -> Fit:
    """Train, sample, continue with long runs, and compute densities on the grid.

    Args:
        distribution: distribution of the data.
        experiment: experiment of the method.
        label: name of the method.
        grid: grid of the densities.
        lengthen: factor by which chains of long runs are longer than those of training.
        on_progress: receives `num_chain_steps` steps in all.

    Raises:
        UserError: training diverged.
    """
    model, chain = ToyModel.create(experiment), experiment.mcmc.num_chain_steps
    train(model, distribution, lambda loss: on_progress(chain, f"{label}: loss {loss:.3f}"))
    noise = PhiloxNoise(experiment.train.seed)
    stages = model.sample_levels(noise, torch.arange(NUM_SAMPLES))
    num_levels, num_long = model.levels.num_levels, lengthen * chain
    ids, raw_at = torch.arange(NUM_LONG), _counted(model.network.raw_at, lambda: on_progress(1, f"{label}: long runs"))
    long_run = model.sample_levels(noise, ids, lengthen=lengthen, raw_at=raw_at)[-1]
    # Other ids, so that no chain continues with the random numbers that made its start.
    marginal_run = model.run_marginal(noise, NUM_SAMPLES + ids, stages[-1][:NUM_LONG], num_long, raw_at=raw_at)
    return Fit(
        model,
        stages,
        long_run,
        marginal_run,
        lengthen,
        num_long,
        learned=[learned_masses(model.network.raw_at, model.levels, t, grid) for t in range(num_levels)],
        exact=[exact_masses(distribution, model.ladder, t, grid) for t in range(num_levels + 1)],
    )


def _counted(raw_at: RawAtLevel, on_progress: Callable[[], None]) -> RawAtLevel:
    """The same network, which calls `on_progress` before every gradient."""

    def counted_at(level: Tensor) -> LogDensityAndGrad:
        raw_and_grad = raw_at(level)

        def counted(y: Tensor) -> tuple[Tensor, Tensor]:
            on_progress()
            return raw_and_grad(y)

        return counted

    return counted_at


def report(drl: Fit, short_run: Fit, data: Tensor, grid: Grid) -> list[str]:
    """The figures of a study as lines of text: a table, then the levels of diffusion recovery likelihood.

    Args:
        drl, short_run: results of both methods on the same data.
        data: points of the data, (N, 2).
        grid: grid of the densities.
    """
    runs: list[tuple[str, Callable[[Fit], Tensor]]] = [
        ("samples", lambda f: f.stages[-1]),
        (f"chains {drl.lengthen} times as long", lambda f: f.long_run),
        (f"{counted(drl.num_long, 'more step')} on f(y, 0)", lambda f: f.marginal_run),
    ]
    rows: list[tuple[str, Callable[[Fit], str]]] = [
        ("learned density: total variation from the exact one", lambda f: f"{f.total_variations[0]:.3f}"),
        ("learned density: KL(exact || learned), nats", lambda f: f"{f.kl_divergence:.2f}"),
    ]
    for what, points in runs:
        rows += [
            (f"{what}: farther than {NEAR} from the data", partial(_percent_off, points=points, data=data)),
            (f"{what}: total variation over squares", partial(_misplaced, points=points, grid=grid)),
        ]
    width = max(len(what) for what, _ in rows)
    levels = ", ".join(f"{value:.3f}" for value in drl.total_variations)
    return [
        f"{'':{width}} recovery short-run",
        *(f"{what:{width}} {number(drl):>8} {number(short_run):>9}" for what, number in rows),
        f"total variation of the learned density of x_0, x_1, ... by recovery: {levels}",
    ]


def _percent_off(fit: Fit, *, points: Callable[[Fit], Tensor], data: Tensor) -> str:
    return f"{share_off(points(fit), data):.1%}"


def _misplaced(fit: Fit, *, points: Callable[[Fit], Tensor], grid: Grid) -> str:
    return f"{misplaced_share(points(fit), fit.exact[0], grid):.3f}"
