"""The No-U-Turn Sampler (Hoffman & Gelman, 2014) with multinomial sampling (Betancourt, 2017), batched over chains.

A trajectory doubles, in a random direction of time, until it turns back. A chain whose new half turns, or diverges,
stops there and then; so the chains that still run always stand at the same leaf of the same half, and two plain loops,
over depths and over leaves, serve all of them. A chain that has stopped is frozen: only its own numbers decide what
becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.mcmc.kernel import Info, StepNoise, column
from drl_dist.mcmc.leapfrog import DIVERGENCE, Point, energy_error, leapfrog, locate, select, total_energy


class _End(NamedTuple):
    """One end of a trajectory."""

    point: Point
    momentum: Tensor


class _Half(NamedTuple):
    """What doubled a trajectory; of chains that do not run any more it holds nothing that counts."""

    end: _End
    """The end that is far from the old trajectory."""
    proposal: Point
    """One of its points, each with probability proportional to exp(-energy)."""
    log_weight: Tensor
    """(B,) float64, log of the sum of exp(energy at the start - energy) over its points."""
    momentum_sum: Tensor
    """(B, ...)"""
    running: Tensor
    """(B,) bool: chains for which the half is complete."""


@dataclass
class _Account:
    """Sums over every point that the trajectories of a step reached."""

    num_leapfrog_steps: Tensor
    acceptance: Tensor
    energy_error: Tensor
    """The largest in size."""
    is_divergent: Tensor

    @classmethod
    def empty(cls, like: Tensor) -> _Account:
        counts, flags = torch.zeros_like(like, dtype=torch.int64), torch.zeros_like(like, dtype=torch.bool)
        return cls(counts, torch.zeros_like(like), torch.zeros_like(like), flags)

    def add(self, running: Tensor, error: Tensor) -> None:
        """One more point, for the chains that run."""
        self.num_leapfrog_steps += running
        self.acceptance += running * (-error).clamp(max=0.0).exp()
        self.is_divergent |= running & (error > DIVERGENCE)
        is_largest = running & (error.abs() > self.energy_error.abs())
        self.energy_error = torch.where(is_largest, error, self.energy_error)


@dataclass(frozen=True)
class Nuts:
    """One trajectory and one draw from its points; 1 to 2**max_tree_depth - 1 gradients a step.

    Args:
        density: log p and its gradient.
        step_size: (B,) delta of a leapfrog step.
        max_tree_depth: doublings after which a trajectory ends, turned or not.
    """

    density: LogDensityAndGrad
    step_size: Tensor
    max_tree_depth: int = 10

    @property
    def num_uniforms(self) -> int:
        """See `Kernel.num_uniforms`: a direction and an exchange for each doubling, a choice for each leaf."""
        return 2 * self.max_tree_depth + 2**self.max_tree_depth - 1

    def init(self, y: Tensor) -> Point:
        """See `Kernel.init`; one gradient."""
        return locate(self.density, y)

    def __call__(self, state: Point, noise: StepNoise) -> tuple[Point, Info]:
        """See `Kernel`; the host waits once per leaf, to see whether any chain still runs."""
        depths = self.max_tree_depth
        directions, exchanges, choices = noise.uniform.split([depths, depths, 2**depths - 1], dim=1)
        energy = total_energy(state, noise.normal)
        account = _Account.empty(energy)
        left = right = _End(state, noise.normal)
        proposal, log_weight, momentum_sum = state, torch.zeros_like(energy), noise.normal
        running = torch.ones_like(energy, dtype=torch.bool)
        is_moved = torch.zeros_like(running)
        for depth in range(depths):
            forwards = directions[:, depth] < 0.5
            leaves = choices[:, 2**depth - 1 : 2 ** (depth + 1) - 1]
            half = self._half(_choose(forwards, right, left), forwards, running, energy, leaves, account)
            running = half.running
            # Biased progressive sampling: the new half is preferred, which moves farther and keeps the law.
            is_taken = running & (exchanges[:, depth].log() < half.log_weight - log_weight)
            proposal, is_moved = select(is_taken, half.proposal, proposal), is_moved | is_taken
            log_weight = torch.logaddexp(log_weight, half.log_weight)
            momentum_sum = momentum_sum + half.momentum_sum
            left, right = _choose(forwards, left, half.end), _choose(forwards, half.end, right)
            running = running & ~is_turning(left.momentum, right.momentum, momentum_sum)
            if not running.any():
                break
        return proposal, Info(
            is_accepted=is_moved,
            acceptance_probability=account.acceptance / account.num_leapfrog_steps,
            energy_error=account.energy_error,
            is_divergent=account.is_divergent,
            num_leapfrog_steps=account.num_leapfrog_steps,
        )

    def _half(
        self, start: _End, forwards: Tensor, running: Tensor, energy: Tensor, choices: Tensor, account: _Account
    ) -> _Half:
        """As many leaves as `choices` (B, leaves) has columns, from `start`; sub-trees are checked as they end.

        A sub-tree is 2**k leaves from a multiple of 2**k on. All that its check needs of its first leaf is the momentum
        and the sum of momenta there, kept in a slot of that leaf's number of ones in binary: leaves within the sub-tree
        have more ones than its first, so the slot is still there when the sub-tree ends. That is one slot per depth.
        """
        num_leaves = choices.shape[1]
        step = torch.where(forwards, self.step_size, -self.step_size)
        point, momentum = start
        proposal, log_weight = point, torch.full_like(energy, -torch.inf)
        momentum_sum = torch.zeros_like(momentum)
        first_leaves: dict[int, tuple[Tensor, Tensor]] = {}
        for leaf in range(num_leaves):
            point, momentum = leapfrog(self.density, point, momentum, step)
            error = energy_error(total_energy(point, momentum), energy)
            account.add(running, error)
            running = running & (error <= DIVERGENCE)
            log_weight = torch.logaddexp(log_weight, -error)
            is_chosen = running & (choices[:, leaf].log() < -error - log_weight)
            proposal = select(is_chosen, point, proposal)
            if leaf % 2 == 0:
                first_leaves[leaf.bit_count()] = momentum, momentum_sum
            momentum_sum = momentum_sum + momentum
            for first in _first_leaves_of_subtrees(leaf):
                first_momentum, sum_before = first_leaves[first.bit_count()]
                running = running & ~is_turning(first_momentum, momentum, momentum_sum - sum_before)
            if not running.any():
                break
        return _Half(_End(point, momentum), proposal, log_weight, momentum_sum, running)


def is_turning(first: Tensor, last: Tensor, momentum_sum: Tensor) -> Tensor:
    """The generalised criterion: the way along the trajectory points against the momentum at one of its ends, (B,)
    bool.

    The way is the sum of momenta with the ends counted half, the trapezoidal rule for the way that y went, in units of
    the step size: Hoffman & Gelman's criterion up to O(delta**2). Betancourt prints it with whole ends.

    Args:
        first: (B, ...) momentum at one end.
        last: (B, ...) momentum at the other end.
        momentum_sum: (B, ...) over all points, ends included.
    """
    way = momentum_sum - 0.5 * (first + last)
    return (_dot(way, first) <= 0) | (_dot(way, last) <= 0)


def _first_leaves_of_subtrees(leaf: int) -> list[int]:
    """The first leaves of all sub-trees, smallest first, whose last leaf is `leaf`."""
    trailing_ones = (leaf ^ (leaf + 1)).bit_length() - 1
    return [leaf + 1 - 2**k for k in range(1, trailing_ones + 1)]


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).flatten(1).sum(1)


def _choose(condition: Tensor, chosen: _End, other: _End) -> _End:
    mask = column(condition, chosen.momentum)
    return _End(select(condition, chosen.point, other.point), torch.where(mask, chosen.momentum, other.momentum))
