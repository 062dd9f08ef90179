"""log Z and bits per dimension where both are known."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import pytest
import torch

from drl_dist.build import build_ladder
from drl_dist.config.presets import preset
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.likelihood.adaptation import LIKELIHOOD_IDS, MAX_ADAPTED, adapted_levels
from drl_dist.likelihood.bits import bits_per_dim, log_density_of_data
from drl_dist.likelihood.marginals import Marginals, draws, white_noise_log_z
from drl_dist.likelihood.partition import LogZ, annealed_log_density, lower_bound, upper_bound
from drl_dist.likelihood.report import report
from drl_dist.likelihood.weights import effective_sample_size, is_carried_by_few, log_mean_exp, resampled
from tests.likelihood.one_step import Passage, one_step_log_weights
from tests.likelihood.oracle import Oracle, gaussian, mixture

IDS = LIKELIHOOD_IDS + torch.arange(8192)
CLOSE = 0.01
"""Bits per dimension."""

CASES = {
    "gaussian-t6": (Oracle.of(gaussian(), 8, "t6"), 60, 1000),
    "gaussian-t6-conditional-top": (Oracle.of(gaussian(), 8, "t6", top_level="conditional"), 60, 1000),
    "mixture-t6": (Oracle.of(mixture(4), 4, "t6"), 40, 800),
    "gaussian-t1k": (Oracle.of(gaussian(), 8, "t1k"), 1, 200),
    "mixture-t1k": (Oracle.of(mixture(4), 4, "t1k"), 1, 400),
}


def bounds(oracle: Oracle, num_bridges: int, num_chains: int, seed: int = 0) -> tuple[LogZ, LogZ, Passage, Passage]:
    noise, marginals, steps = PhiloxNoise(seed), oracle.marginals, oracle.step_sizes()
    down_ids, up_ids = IDS[:num_chains], IDS[num_chains : 2 * num_chains]
    shape = (oracle.num_dims,)
    down = Passage.collect(marginals.descend(steps, noise, down_ids, shape, num_bridges=num_bridges))
    x_0 = oracle.draws(0, num_chains, seed)
    up = Passage.collect(marginals.ascend(x_0, steps, noise, up_ids, num_bridges=num_bridges))
    lower, upper = (
        bound(way.log_weight, way.acceptance_rate, way.root_mean_square, oracle.levels, oracle.num_dims)
        for bound, way in ((lower_bound, down), (upper_bound, up))
    )
    return lower, upper, down, up


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_both_bounds_bracket_the_truth_and_are_close(name: str) -> None:
    oracle, num_bridges, num_chains = CASES[name]
    lower, upper, _, up = bounds(oracle, num_bridges, num_chains)
    truth, per_dim = oracle.log_z(), oracle.num_dims * math.log(2)
    for bound in (lower, upper):
        assert not bound.is_carried_by_few
        assert abs(bound.log_z - truth) / per_dim < CLOSE
    # They are on their sides of the truth up to chance.
    assert lower.log_z < truth + 3 * lower.standard_error
    assert upper.log_z > truth - 3 * upper.standard_error
    # Every level's log Z and ratio, in y.
    for t, row in enumerate(lower.levels):
        above = white_noise_log_z(oracle.num_dims) if t + 1 == len(lower.levels) else oracle.log_z(t + 1)
        assert row.log_z == pytest.approx(oracle.log_z(t), abs=max(CLOSE * per_dim, 0.1))
        for ratio in (row.log_z_ratio, upper.levels[t].log_z_ratio):
            assert ratio == pytest.approx(oracle.log_z(t) - above, abs=max(CLOSE * per_dim, 0.1))
    # Bits per dimension of the model's own draws, one by one.
    x_0 = oracle.draws(0, num_chains)
    scale = float(oracle.levels.transition_scale[0])
    unnormalised = oracle.y_distribution(0).log_density(scale * x_0)
    exact = log_density_of_data(unnormalised, truth, scale, oracle.num_dims)
    low, high = (
        bits_per_dim(log_density_of_data(unnormalised, bound.log_z, scale, oracle.num_dims), oracle.num_dims)
        for bound in (lower, upper)
    )
    wanted = bits_per_dim(exact, oracle.num_dims)
    assert float((low - wanted).abs().max()) < CLOSE
    assert float((high - wanted).abs().max()) < CLOSE
    # The third bound, of the annealed sampler's density, needs no draws of the model to be one.
    annealed = bits_per_dim(annealed_log_density(unnormalised, up.log_weight.sum(0), oracle.num_dims), oracle.num_dims)
    excess = annealed - wanted
    assert float(excess.mean()) > -3 * float(excess.std()) / math.sqrt(num_chains)
    assert float(excess.mean()) < 0.15


@pytest.mark.slow
def test_the_bounds_hold_on_average_where_chains_are_short() -> None:
    # One step per level, few chains: far from the truth, and on the right side.
    oracle = CASES["gaussian-t6"][0]
    found = [bounds(oracle, 1, 8, seed)[:2] for seed in range(20)]
    low = torch.tensor([lower.log_z for lower, _ in found]) - oracle.log_z()
    high = torch.tensor([upper.log_z for _, upper in found]) - oracle.log_z()
    assert float(low.mean()) < -3 * float(low.std()) / math.sqrt(20)
    assert float(high.mean()) > 3 * float(high.std()) / math.sqrt(20)
    assert all(lower.is_carried_by_few for lower, _ in found)


def test_weights_are_unbiased_however_short_the_chains() -> None:
    oracle = Oracle.of(gaussian(), 1, "t6")
    _, _, down, up = bounds(oracle, 2, 4096)
    truth = oracle.log_z() - white_noise_log_z(1) - float(oracle.levels.transition_scale[0].log())
    for way, sign in ((down, 1), (up, -1)):
        ratio = torch.exp(way.log_weight.sum(0) - sign * truth)
        assert abs(float(ratio.mean()) - 1) < 3 * float(ratio.std()) / math.sqrt(len(ratio))
        assert float(ratio.std()) > 0.1, "equal weights would make the comparison easy"


@pytest.mark.slow
def test_a_dropped_increment_is_seen() -> None:
    # The mutation that the tests above must catch.
    oracle, num_bridges, num_chains = CASES["gaussian-t6"]
    _, _, down, _ = bounds(oracle, num_bridges, num_chains)
    wrong = lower_bound(
        down.log_weight * (1 - 1 / num_bridges), down.acceptance_rate, down.root_mean_square, oracle.levels, 8
    )
    assert abs(wrong.log_z - oracle.log_z()) / (8 * math.log(2)) > CLOSE


def one_step(oracle: Oracle, count: int = 1000) -> torch.Tensor:
    draws = [oracle.draws(t, count) for t in range(oracle.levels.num_levels + 1)]
    return one_step_log_weights(oracle.marginals, draws, torch.arange(count))


def test_the_effective_sample_size_warns_where_the_papers_one_step_fails() -> None:
    # Below a conditional top level y_5 is 28 times narrower than y_4: it proposes far too narrowly.
    oracle = Oracle.of(dataclasses.replace(gaussian(), std=0.2), 4, "t6", top_level="conditional")
    weights = one_step(oracle)
    found, sizes = log_mean_exp(weights, 1), effective_sample_size(weights, 1)
    truth = [oracle.log_z(t) - oracle.log_z(t + 1) for t in range(5)] + [oracle.log_z(5) - white_noise_log_z(4)]
    failed = [t for t in range(6) if abs(float(found[t]) - truth[t]) > 1]
    assert failed == [4, 5]
    assert truth[4] == pytest.approx(13.05, abs=0.1)
    assert float(found[4]) < 6
    assert [t for t in range(6) if is_carried_by_few(float(sizes[t]), 1000)] == failed


@pytest.mark.slow
def test_one_step_is_right_where_neighbours_overlap() -> None:
    oracle = Oracle.of(gaussian(), 2, "t1k")
    weights = one_step(oracle, 100)
    total = float(log_mean_exp(weights, 1).sum()) + white_noise_log_z(2)
    assert total == pytest.approx(oracle.log_z(), abs=0.15)
    assert not any(is_carried_by_few(float(size), 100) for size in effective_sample_size(weights, 1))


def test_chains_do_not_depend_on_their_batch() -> None:
    oracle = CASES["gaussian-t6"][0]
    noise, steps = PhiloxNoise(3), oracle.step_sizes()

    def run(ids: torch.Tensor) -> torch.Tensor:
        return Passage.collect(oracle.marginals.descend(steps, noise, ids, (8,), num_bridges=2)).log_weight

    whole = run(IDS[:7])
    torch.testing.assert_close(whole, torch.cat([run(IDS[:3]), run(IDS[3:7])], 1), rtol=1e-12, atol=1e-12)
    assert len(whole.sum(0).unique()) == 7


def test_step_sizes_follow_the_width_of_the_densities() -> None:
    oracle = CASES["gaussian-t6"][0]
    adaptation = oracle.adaptation()
    adapted = adaptation.step_sizes(adaptation.run())
    assert (adapted.density, adapted.num_levels, len(adapted.step_size)) == ("marginal", 6, 7)
    assert all(0.6 <= rate <= 0.9 for rate in adapted.acceptance_rate)
    widths = [oracle.x_distribution(t).std for t in range(6)] + [1.0]
    ratios = [step / width for step, width in zip(adapted.step_size, widths, strict=True)]
    # The wanted range of rates leaves a factor of about two.
    assert max(ratios) / min(ratios) < 2


def test_of_a_thousand_levels_few_are_adapted() -> None:
    for setting, num_levels in (("t6", 6), ("t1", 1), ("t1k", 1000)):
        ladder = build_ladder(preset("digits", setting).diffusion)
        chosen = adapted_levels(ladder)
        assert (chosen[0], chosen[-1]) == (num_levels, 0)
        assert chosen == sorted(set(chosen), reverse=True)
        assert len(chosen) <= MAX_ADAPTED + 10
        if num_levels < 10:
            assert len(chosen) == num_levels + 1
        ratios = [float(ladder.cumulative_std[a] / ladder.cumulative_std[b]) for a, b in itertools.pairwise(chosen)]
        assert num_levels < 1000 or max(ratios) < 1.5


def test_wrong_numbers_of_step_sizes_are_refused() -> None:
    oracle = CASES["gaussian-t6"][0]
    with pytest.raises(ValueError, match="6 step sizes for 6 levels"):
        next(oracle.marginals.descend(oracle.step_sizes()[:6], PhiloxNoise(0), IDS[:2], (8,), num_bridges=1))


def test_marginals_are_those_of_the_model() -> None:
    oracle = Oracle.of(gaussian(), 3, "t6", top_level="conditional")
    x = oracle.draws(2, 5).requires_grad_()
    for t in (0, 3, 5):
        value, gradient = Marginals(oracle.raw_at, oracle.levels).density(t, torch.arange(5))(x)
        expected = oracle.y_distribution(t).log_density(float(oracle.levels.transition_scale[t]) * x)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), x)[0])


def test_a_report_says_what_is_wrong() -> None:
    oracle, num_bridges, num_chains = CASES["gaussian-t6"][0], 40, 400
    _, _, down, up = bounds(oracle, num_bridges, num_chains)
    x_0 = oracle.draws(0, num_chains)
    values = oracle.y_distribution(0).log_density(float(oracle.levels.transition_scale[0]) * x_0)
    ways = [
        {
            "log_weight": way.log_weight,
            "acceptance_rate": way.acceptance_rate,
            "root_mean_square": way.root_mean_square,
            "at_x_0": values,
        }
        for way in (down, up)
    ]
    good = report(values, values, {num_bridges: (ways[0], ways[1], None)}, oracle.levels, oracle.ladder, 8)
    assert good.warnings == ()
    # -log p of a normal distribution is its entropy on average.
    std = oracle.x_distribution(0).std
    a_0 = float(oracle.ladder.cumulative_scale[0])
    entropy = 0.5 * math.log2(2 * math.pi * math.e * std**2) + math.log2(127.5) - math.log2(a_0)
    for bits in (good.at_x_0.lower, good.at_x_0.upper, good.estimates[0].annealed_bits_per_dim):
        assert bits == pytest.approx(entropy, abs=4 * good.at_x_0.lower_standard_error + 0.05)
    [estimate] = good.estimates
    assert estimate.lower_curve.num_chains == (1, 2, 4, 8, 16, 32, 64, 128, 256, 400)
    assert estimate.lower_curve.log_z[-1] == estimate.lower.log_z
    assert estimate.upper_curve.log_z[-1] == estimate.upper.log_z
    # Rising from below, falling from above.
    assert estimate.lower_curve.log_z[0] < estimate.lower_curve.log_z[4] < oracle.log_z() + 0.1
    assert estimate.upper_curve.log_z[0] > estimate.upper_curve.log_z[4] > oracle.log_z() - 0.1

    def warnings(number: int, **changed: torch.Tensor) -> str:
        spoiled = [dict(way) for way in ways]
        spoiled[number] |= changed
        found = report(values, values, {9: (spoiled[0], spoiled[1], None)}, oracle.levels, oracle.ladder, 8)
        return "\n".join(found.warnings)

    few = down.log_weight.clone()
    few[2, 0] += 50
    assert "lower estimate of log Z rests on 1.0 effective of 400 chains" in warnings(0, log_weight=few)
    assert "lower estimate at 1 of 6 levels (2) each rest on few chains" in warnings(0, log_weight=few)
    assert "levels 0, 1, 2, 3, 4, 5" in warnings(1, root_mean_square=up.root_mean_square + 2)
    assert re.search(
        r"estimates are (1|1\.0\d|0\.9\d+) bits/dim apart", warnings(1, log_weight=up.log_weight - 8 * math.log(2) / 6)
    )
    assert "needs images that are draws of the model" in warnings(1, log_weight=up.log_weight + 1)


def test_draws_of_the_model_give_the_upper_estimate_where_images_cannot() -> None:
    oracle, num_bridges, num_chains = CASES["mixture-t6"][0], 4, 400
    noise, marginals, steps = PhiloxNoise(1), oracle.marginals, oracle.step_sizes()
    per_dim, shape = oracle.num_dims * math.log(2), (oracle.num_dims,)

    def upward(x_0: torch.Tensor) -> Passage:
        return Passage.collect(marginals.ascend(x_0, steps, noise, IDS[:num_chains], num_bridges=num_bridges))

    def upper_from(way: Passage) -> LogZ:
        return upper_bound(way.log_weight, way.acceptance_rate, way.root_mean_square, oracle.levels, oracle.num_dims)

    ids = IDS[num_chains : 2 * num_chains]
    passed = list(draws(marginals.descend(steps, noise, ids, shape, num_bridges=num_bridges), noise, ids))
    level, x_0 = passed[-1]
    assert (len(passed), level, x_0.shape) == (6, 0, (num_chains, *shape))
    own = upper_from(upward(x_0))
    assert not own.is_carried_by_few
    assert abs(own.log_z - oracle.log_z()) / per_dim < 2 * CLOSE
    # Images that short chains reach more often than the density says pull the estimate below the truth.
    far = upward(2 * oracle.draws(0, num_chains))
    assert upper_from(far).log_z < oracle.log_z() - 0.5 * per_dim

    down = Passage.collect(marginals.descend(steps, noise, IDS[:num_chains], shape, num_bridges=num_bridges))
    ways = [
        {
            "log_weight": way.log_weight,
            "acceptance_rate": way.acceptance_rate,
            "root_mean_square": way.root_mean_square,
            "at_x_0": torch.zeros(num_chains, dtype=torch.float64),
        }
        for way in (down, far, upward(x_0))
    ]
    values = torch.zeros(3, dtype=torch.float64)
    for last, side in ((None, "images"), (ways[2], "draws")):
        found = report(values, values, {9: (ways[0], ways[1], last)}, oracle.levels, oracle.ladder, oracle.num_dims)
        assert found.upper_from == side
        assert ("below the lower one" in "".join(found.warnings)) is (last is None)
        # The images' bound by annealed chains needs those that began at images.
        (estimate,) = found.estimates
        assert estimate.annealed_bits_per_dim != pytest.approx(0) and estimate.upper.num_chains == num_chains


def test_resampling_takes_each_sample_as_often_as_its_weight_says() -> None:
    weights = torch.tensor([0.5, 0.0, 0.25, 0.15, 0.1], dtype=torch.float64)
    for offset in (1e-9, 0.3, 0.999999):
        taken = resampled(weights.log(), torch.tensor([offset], dtype=torch.float64))
        counts = torch.bincount(taken, minlength=5)
        assert bool(((counts - 5 * weights).abs() < 1).all()) and int(counts[1]) == 0
    offsets = torch.arange(1000, dtype=torch.float64).add(0.5).div(1000)
    mean = torch.stack([torch.bincount(resampled(weights.log(), one[None]), minlength=5) for one in offsets])
    torch.testing.assert_close(mean.double().mean(0), 5 * weights, rtol=0, atol=2e-3)
