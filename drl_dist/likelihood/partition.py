"""Estimates that bound log Z along the ladder on average, from the weights of annealed chains, and image densities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.diffusion.recovery import Levels
from drl_dist.likelihood.marginals import white_noise_log_z
from drl_dist.likelihood.weights import (
    effective_sample_size,
    is_carried_by_few,
    log_mean_exp,
    markov_margin,
    standard_error,
)


@dataclass(frozen=True, kw_only=True)
class LevelWeights:
    """Estimates from the passage between levels t and t + 1."""

    level: int
    """t"""
    log_z_ratio: float
    """log Z_t / Z_{t+1} of y in nats, from this passage alone (equation 45, estimated in K steps instead of one)."""
    log_z: float
    """log Z_t of y in nats, from all passages from white noise to here (equation 47); nan on the way up."""
    effective_sample_size: float
    """Effective sample size of the weights of this passage alone."""
    cumulative_effective_sample_size: float
    """Effective sample size of the weights accumulated by the end of this passage."""
    acceptance_rate: float
    root_mean_square: float
    """Root mean square per pixel of x at the end of the passage."""
    is_carried_by_few: bool
    """Whether this passage alone has too few effective samples."""


@dataclass(frozen=True, kw_only=True)
class LogZ:
    """An estimate that bounds log Z of y_0, the logarithm of the integral of exp f(y, 0), on average."""

    log_z: float
    """The estimate in nats: from downward chains too small on average, from upward chains too large on average. A
    single one may lie on the other side of the truth."""
    limit: float
    """Limit in nats that log Z respects with a probability of at least `MARKOV_CONFIDENCE`: log Z is above it from
    downward chains, and below it from upward chains if those began at draws from the model."""
    standard_error: float
    effective_sample_size: float
    """Effective sample size of the weights over the whole ladder."""
    num_chains: int
    is_carried_by_few: bool
    """Whether so few chains dominate the estimate that it may be far from the truth."""
    levels: tuple[LevelWeights, ...]
    """Estimates of each level, (T,), t = 0 first."""

    @property
    def sum_of_ratios(self) -> float:
        """log Z of y_T plus the ratios of all levels, each from its passage alone, in nats.

        The sum of equation 48, over ratios that are estimated by annealing and not by the single step of equation 46.

        It needs chains that are draws from each level's density; its errors do not average out as those of `log_z` do.
        """
        return sum(level.log_z_ratio for level in self.levels)


def offset(levels: Levels, num_dims: int) -> float:
    """log Z_0 of y less log Z_0 / Z_T of x in nats: the part of log Z that is known exactly.

    Z of x_T is that of white noise, and Z of y_0 = scale_0 x_0 is scale_0**D times that of x_0.
    """
    return white_noise_log_z(num_dims) + num_dims * float(levels.transition_scale[0].log())


def lower_bound(
    log_weight: Tensor, acceptance_rate: Tensor, root_mean_square: Tensor, levels: Levels, num_dims: int
) -> LogZ:
    """log Z from downward chains: E exp(log_weight) = Z_0 / Z_T, so the logarithm of its mean is too small on average.

    Args:
        log_weight: (T, M) float64, of M chains: row t of the passage between levels t and t + 1.
        acceptance_rate: (T, M)
        root_mean_square: (T, M)
        levels: levels of the model.
        num_dims: D.
    """
    return _log_z(log_weight, acceptance_rate, root_mean_square, levels, num_dims, is_upward=False)


def upper_bound(
    log_weight: Tensor, acceptance_rate: Tensor, root_mean_square: Tensor, levels: Levels, num_dims: int
) -> LogZ:
    """log Z from upward chains: E exp(log_weight) = Z_T / Z_0 if they began at draws from the model, so minus the
    logarithm of its mean is too large on average. Arguments as `lower_bound`."""
    return _log_z(log_weight, acceptance_rate, root_mean_square, levels, num_dims, is_upward=True)


def annealed_log_density(unnormalised: Tensor, total_log_weight: Tensor, num_dims: int) -> Tensor:
    """A lower bound, on average, of log q(x_0) of each image, where q is the distribution in which downward chains end.

    f(x_0) + log weight - log Z_T, from one chain that moved x_0 up the ladder (RAISE: Burda, Grosse, Salakhutdinov,
    AISTATS 2015). q is a normalised density whatever the chains do, and equals p if they mix; images need not be draws
    from p.

    Args:
        unnormalised: (B,) f(y_0, 0) in nats.
        total_log_weight: (B,) log weights summed over the levels.
        num_dims: D.

    Returns:
        (B,) float64, nats, a density of x_0.
    """
    return unnormalised.double() + total_log_weight - white_noise_log_z(num_dims)


def _log_z(
    log_weight: Tensor,
    acceptance_rate: Tensor,
    root_mean_square: Tensor,
    levels: Levels,
    num_dims: int,
    *,
    is_upward: bool,
) -> LogZ:
    num_levels, num_chains = log_weight.shape
    sign = -1.0 if is_upward else 1.0
    total = log_weight.sum(0)
    # On the way up, weights accumulate from level 0 on.
    gathered = log_weight.cumsum(0) if is_upward else log_weight.flip(0).cumsum(0).flip(0)
    ratios, sizes = sign * log_mean_exp(log_weight, 1), effective_sample_size(log_weight, 1)
    log_z, cumulative = log_mean_exp(gathered, 1), effective_sample_size(gathered, 1)
    log_scale = torch.cat([levels.transition_scale.double().cpu().log(), torch.zeros(1, dtype=torch.float64)])
    rows = tuple(
        LevelWeights(
            level=t,
            # Z of y_t = scale_t x_t is scale_t**D times that of x_t.
            log_z_ratio=float(ratios[t]) + num_dims * float(log_scale[t] - log_scale[t + 1]),
            log_z=float("nan")
            if is_upward
            else white_noise_log_z(num_dims) + float(log_z[t]) + num_dims * float(log_scale[t]),
            effective_sample_size=float(sizes[t]),
            cumulative_effective_sample_size=float(cumulative[t]),
            acceptance_rate=float(acceptance_rate[t].mean()),
            root_mean_square=float(root_mean_square[t].mean()),
            is_carried_by_few=is_carried_by_few(float(sizes[t]), num_chains),
        )
        for t in range(num_levels)
    )
    ess = float(effective_sample_size(total))
    estimate = offset(levels, num_dims) + sign * float(log_mean_exp(total))
    return LogZ(
        log_z=estimate,
        limit=estimate - sign * markov_margin(),
        standard_error=standard_error(total),
        effective_sample_size=ess,
        num_chains=num_chains,
        is_carried_by_few=is_carried_by_few(ess, num_chains),
        levels=rows,
    )
