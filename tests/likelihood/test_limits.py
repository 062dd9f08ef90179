"""What holds of log Z in a single run: the limits by Markov's inequality, where the estimates themselves may miss."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import Levels
from drl_dist.likelihood.adaptation import LIKELIHOOD_IDS
from drl_dist.likelihood.partition import LogZ, lower_bound, offset, upper_bound
from drl_dist.likelihood.weights import MARKOV_CONFIDENCE
from tests.likelihood.one_step import Passage
from tests.likelihood.oracle import Oracle, gaussian

Bound = Callable[[Tensor, Tensor, Tensor, Levels, int], LogZ]
RUNS, CHAINS, DIMS = 400, 4, 2
ORACLE = Oracle.of(gaussian(), DIMS, "t6")
IDS = LIKELIHOOD_IDS + torch.arange(2 * RUNS * CHAINS)


def pairs() -> tuple[list[LogZ], list[LogZ]]:
    """Estimates of many runs, each of a few short chains of its own."""
    marginals, steps, noise = ORACLE.marginals, ORACLE.step_sizes(), PhiloxNoise(0)
    down_ids, up_ids = IDS.chunk(2)
    x_0 = ORACLE.draws(0, RUNS * CHAINS)
    found: list[list[LogZ]] = []
    for bound, parts in (
        (lower_bound, marginals.descend(steps, noise, down_ids, (DIMS,), num_bridges=1)),
        (upper_bound, marginals.ascend(x_0, steps, noise, up_ids, num_bridges=1)),
    ):
        way = Passage.collect(parts)
        runs = (
            [values[:, run * CHAINS : (run + 1) * CHAINS] for run in range(RUNS)]
            for values in (way.log_weight, way.acceptance_rate, way.root_mean_square)
        )
        found.append([bound(*run, ORACLE.levels, DIMS) for run in zip(*runs, strict=True)])
    lower, upper = found
    return lower, upper


def share(misses: list[bool]) -> float:
    return sum(misses) / len(misses)


def test_the_limits_fail_in_no_more_runs_than_they_may() -> None:
    lower, upper = pairs()
    truth = ORACLE.log_z()
    # The estimates alone miss the truth in many runs, so limits at the estimates would not pass.
    assert share([bound.log_z > truth for bound in lower]) > 0.15
    assert share([bound.log_z < truth for bound in upper]) > 0.15
    below, above = [bound.limit > truth for bound in lower], [bound.limit < truth for bound in upper]
    for misses, allowed in ((below, 0.05), (above, 0.05), ([a or b for a, b in zip(below, above, strict=True)], 0.1)):
        assert share(misses) <= allowed + 3 * math.sqrt(allowed * (1 - allowed) / RUNS)
    # And they are no wider than they must be.
    for bounds, sign in ((lower, 1), (upper, -1)):
        assert all(sign * (bound.log_z - bound.limit) == pytest.approx(math.log(20)) for bound in bounds)


@pytest.mark.parametrize("probability", [0.01, 0.049, 0.051, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("bound", [lower_bound, upper_bound])
def test_no_two_valued_weight_breaks_a_limit_too_often(bound: Bound, probability: float) -> None:
    # The worst case of Markov's inequality: a weight of 1 / p with probability p, otherwise 0, whose mean is 1.
    large = torch.full((1, 2), -math.log(probability), dtype=torch.float64)
    other = torch.ones(1, 2, dtype=torch.float64)
    levels, truth = ORACLE.levels, offset(ORACLE.levels, DIMS)
    limit = bound(large, other, other, levels, DIMS).limit
    is_wrong = limit > truth if bound is lower_bound else limit < truth
    assert (probability if is_wrong else 0) <= 1 - MARKOV_CONFIDENCE + 1e-12
    assert is_wrong == (probability < 0.05)
