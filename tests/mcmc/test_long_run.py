"""Long runs on data whose every level is Gaussian: what comes out is the data, at T = 6 and at T = 1000."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.errors import UserError
from drl_dist.config.tree import DiffusionConfig, Experiment, McmcConfig
from drl_dist.diffusion.ladder import NoiseLadder, linear_ladder
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.energy.analytic import Gaussian
from drl_dist.mcmc.kernel import Observer
from drl_dist.mcmc.kernels import kernel_named
from drl_dist.mcmc.record import ChainRecord, summarise
from drl_dist.mcmc.settings import AdaptationConfig, Start
from drl_dist.sampling.long_run import LongRunSampler, adapt_step_sizes, suitable_start
from drl_dist.sampling.progressive import RawAtLevel
from tests.mcmc.distributions import expected_rate

DATA = Gaussian(torch.tensor(0.5), 0.4)
T6 = Experiment(preset="gaussian")
T6_CONDITIONAL = Experiment(preset="gaussian", mcmc=McmcConfig(top_level="conditional"))
T1K = Experiment(
    preset="gaussian",
    diffusion=DiffusionConfig(ladder="linear", num_levels=1000, first_variance=1e-4, last_variance=0.02),
    mcmc=McmcConfig(top_level="conditional", energy_scale="unit"),
)
DIMS = 3


def exact_raw(experiment: Experiment) -> RawAtLevel:
    """The raw output of a network that has learned the Gaussian data perfectly."""
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        t = int(level[0])
        target = DATA.level(ladder, t, float(levels.transition_scale[t]))
        scale = float(levels.energy_scale[t])

        def raw(y: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = target.log_density_and_grad(y)
            return value / scale, gradient / scale

        return raw

    return raw_at


def sampler_of(
    experiment: Experiment, kernel: str, num_chain_steps: int, start: Start = "normal_approximation"
) -> LongRunSampler:
    """With the step size 1.2 of the known standard deviation at each level, accepted for about .8."""
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    step_sizes: list[float] = []
    for t in range(levels.num_levels):
        target = DATA.level(ladder, t, float(levels.transition_scale[t]))
        step_sizes.append(1.2 / math.sqrt(target.std**-2 + float(levels.recovery_precision[t])))
    kernel_at = kernel_named(kernel, max_tree_depth=3)  # pyright: ignore[reportArgumentType]
    return LongRunSampler(levels, tuple(step_sizes), kernel_at, num_chain_steps, start)


def scores(x: Tensor, target: Gaussian) -> tuple[float, float]:
    """Standard errors of mean and variance."""
    count = x.numel()
    z = (x.double() - float(target.mean)) / target.std
    return float(z.mean()) * math.sqrt(count), float(z.square().mean() - 1) * math.sqrt(count / 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "start", "kernel", "num_chain_steps", "count"),
    [
        (T6, "normal_approximation", "hmc", 16, 12_000),
        (T6, "x_noisy", "hmc", 16, 12_000),
        # From white noise to a density that is forty times narrower, the way takes some steps.
        (T6_CONDITIONAL, "x_noisy", "hmc", 60, 6000),
        (T6, "normal_approximation", "nuts", 10, 6000),
    ],
)
def test_t6_draws_the_data_at_every_level(
    experiment: Experiment, start: Start, kernel: str, num_chain_steps: int, count: int
) -> None:
    # A bias is seen from 4.5 / sqrt(DIMS * count) standard deviations on.
    sampler = sampler_of(experiment, kernel, num_chain_steps, start)
    ladder = build_ladder(experiment.diffusion)
    run = sampler.sample(exact_raw(experiment), PhiloxNoise(0), torch.arange(count), (DIMS,), keep=range(7))
    assert torch.equal(run.kept[0], run.x)
    for t in range(6):
        target = DATA.affine(float(ladder.cumulative_scale[t]), float(ladder.cumulative_std[t]))
        for score in scores(run.kept[t], target):
            assert abs(score) < 4.5


@pytest.mark.slow
def test_the_normal_approximation_alone_is_wrong_at_t6_and_nearly_right_at_t1k() -> None:
    # Equations 11 and 12 are of first order in sigma**2: a thousand small levels forgive what six large ones do not.
    ids = torch.arange(3000)
    coarse = sampler_of(T6, "hmc", 1).sample(exact_raw(T6), PhiloxNoise(0), ids, (DIMS,), keep=(2,))
    ladder = build_ladder(T6.diffusion)
    target = DATA.affine(float(ladder.cumulative_scale[2]), float(ladder.cumulative_std[2]))
    assert abs(scores(coarse.kept[2], target)[1]) > 50
    fine = sampler_of(T1K, "hmc", 1).sample(exact_raw(T1K), PhiloxNoise(0), ids, (DIMS,))
    assert float(fine.x.std()) == pytest.approx(0.4, rel=0.03)
    assert float(fine.x.mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.slow
def test_t1k_draws_the_data() -> None:
    sampler = sampler_of(T1K, "hmc", 2)
    run = sampler.sample(exact_raw(T1K), PhiloxNoise(0), torch.arange(3000), (DIMS,), keep=(1000, 500))
    ladder = build_ladder(T1K.diffusion)
    assert set(run.kept) == {1000, 500}
    for x, t in ((run.x, 0), (run.kept[500], 500)):
        target = DATA.affine(float(ladder.cumulative_scale[t]), float(ladder.cumulative_std[t]))
        for score in scores(x, target):
            assert abs(score) < 4.5
    for score in scores(run.kept[1000], Gaussian(torch.tensor(0.0), 1.0)):
        assert abs(score) < 4.5


def test_a_lost_recovery_term_is_noticed() -> None:
    wrong = dataclasses.replace(
        sampler_of(T6, "hmc", 16), levels=build_levels(T6_CONDITIONAL, build_ladder(T6.diffusion))
    )
    # The network of a marginal top level, sampled as if it were conditional: the pull to x_6 and the scale are wrong.
    run = wrong.sample(exact_raw(T6), PhiloxNoise(0), torch.arange(3000), (DIMS,), keep=(5,))
    target = DATA.affine(
        *(float(v[5]) for v in (build_ladder(T6.diffusion).cumulative_scale, build_ladder(T6.diffusion).cumulative_std))
    )
    assert max(abs(score) for score in scores(run.kept[5], target)) > 9


def test_images_depend_neither_on_their_batch_nor_on_what_is_kept() -> None:
    sampler = sampler_of(T6, "nuts", 5)
    raw_at, ids = exact_raw(T6), torch.arange(6)
    together = sampler.sample(raw_at, PhiloxNoise(3), ids, (1, 4, 4), keep=range(7))
    apart = [sampler.sample(raw_at, PhiloxNoise(3), part, (1, 4, 4)).x for part in ids.split(2)]
    assert torch.equal(together.x, torch.cat(apart))
    for t, x in sampler.descend(raw_at, PhiloxNoise(3), ids, (1, 4, 4)):
        assert torch.equal(x, together.kept[t])


@pytest.mark.parametrize(
    ("start", "num_chain_steps", "per_level", "at_marginal"),
    [
        ("normal_approximation", 1, 1, 1 + 2),
        ("normal_approximation", 4, 1 + 1 + 3 * 2, 1 + 4 * 2),
        ("x_noisy", 4, 1 + 4 * 2, 1 + 4 * 2),
    ],
)
def test_gradients_are_counted(start: Start, num_chain_steps: int, per_level: int, at_marginal: int) -> None:
    calls: list[int] = []

    def counted(level: Tensor) -> LogDensityAndGrad:
        raw = exact_raw(T6)(level)

        def density(y: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(int(level[0]))
            return raw(y)

        return density

    sampler_of(T6, "hmc", num_chain_steps, start).sample(counted, PhiloxNoise(0), torch.arange(2), (DIMS,))
    assert [calls.count(t) for t in range(6)] == [per_level] * 5 + [at_marginal]


def test_what_the_chains_say_is_summed_over_batches() -> None:
    sampler = sampler_of(T6, "hmc", 12)
    records: dict[int, list[ChainRecord]] = {t: [] for t in range(6)}

    def observe(t: int, x_noisy: Tensor) -> Observer:
        records[t].append(ChainRecord(x_noisy, is_traced=t == 2))
        return records[t][-1]

    runs = [
        sampler.sample(exact_raw(T6), PhiloxNoise(0), part, (DIMS,), keep=range(7), observe=observe)
        for part in torch.arange(500).split(300)
    ]
    kept = {t: torch.cat([run.kept[t] for run in runs]) for t in range(7)}
    for t in range(6):
        summary = summarise([one.close() for one in records[t]])
        assert (summary.num_chains, summary.num_steps) == (500, 12 if t == 5 else 11)
        # Chains that begin far out accept more at first.
        assert summary.acceptance_rate == pytest.approx(expected_rate(1.2, DIMS), abs=0.04)
        assert summary.move_rate == pytest.approx(summary.acceptance_rate, abs=0.03)
        assert summary.leapfrogs_per_step == 2
        assert summary.num_divergences == 0
        assert 0.1 < summary.energy_error_rms < summary.energy_error_max < 20
        y = kept[t] * sampler.levels.transition_scale[t].float()
        expected = (y - kept[t + 1]).square().mean(1).sqrt().mean()
        assert summary.displacement == pytest.approx(float(expected), rel=1e-5)
    [first, _] = records[2]
    assert first.trace is not None
    assert first.trace.shape == (11, 300, 1 + DIMS)
    torch.testing.assert_close(
        first.trace[-1, :, 1:], kept[2][:300] * sampler.levels.transition_scale[2].float(), rtol=1e-6, atol=1e-6
    )
    assert records[3][0].trace is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "start", "num_steps"), [(T6, "normal_approximation", 40), (T6_CONDITIONAL, "x_noisy", 100)]
)
def test_step_sizes_of_all_levels_are_adapted_down_the_ladder(
    experiment: Experiment, start: Start, num_steps: int
) -> None:
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    config = AdaptationConfig(num_chains=100, num_steps=num_steps)
    reported: list[tuple[int, float, float]] = []
    adapted = adapt_step_sizes(
        levels,
        exact_raw(experiment),
        (20,),
        seed=4,
        config=config,
        start=start,
        batch_size=60,
        observe=lambda t, step_size, rate: reported.append((t, step_size, rate)),
    )
    assert [t for t, _, _ in reported] == [5, 4, 3, 2, 1, 0]
    assert (adapted.step_size, adapted.acceptance_rate) == tuple(
        zip(*[row[1:] for row in reversed(reported)], strict=True)
    )
    assert (adapted.kernel, adapted.num_chains, adapted.num_steps, adapted.seed) == ("hmc", 100, num_steps, 4)
    # Measured again, on chains of another seed that follow the whole procedure.
    sampler = LongRunSampler(levels, adapted.step_size, kernel_named("hmc"), num_steps, start)
    records: dict[int, ChainRecord] = {}

    def observe(t: int, x_noisy: Tensor) -> Observer:
        return records.setdefault(t, ChainRecord(x_noisy))

    sampler.sample(exact_raw(experiment), PhiloxNoise(5), torch.arange(100), (20,), observe=observe)
    for t in range(6):
        assert 0.6 <= adapted.acceptance_rate[t] <= 0.9
        assert summarise([records[t].close()]).acceptance_rate == pytest.approx(adapted.acceptance_rate[t], abs=0.05)
        target = DATA.level(ladder, t, float(levels.transition_scale[t]))
        std = 1 / math.sqrt(target.std**-2 + float(levels.recovery_precision[t]))
        assert 0.5 < adapted.step_size[t] / std < 1.5


def test_a_level_that_cannot_be_adapted_is_named() -> None:
    levels = build_levels(T6, build_ladder(T6.diffusion))

    def broken(level: Tensor) -> LogDensityAndGrad:
        raw = exact_raw(T6)(level)
        if int(level[0]) != 3:
            return raw
        return lambda y: (torch.full((len(y),), torch.nan), y)

    config = AdaptationConfig(num_chains=50, num_steps=10, max_rounds=15)
    with pytest.raises(UserError, match="step size of level 3: got an acceptance rate of 0"):
        adapt_step_sizes(levels, broken, (20,), seed=0, config=config)


@pytest.mark.parametrize(
    ("ladder", "start"),
    [
        (build_ladder(T6.diffusion), "x_noisy"),
        (build_ladder(T1K.diffusion), "normal_approximation"),
        (linear_ladder(100, 1e-4, 2e-4), "normal_approximation"),
        (linear_ladder(3, 1e-4, 0.5), "x_noisy"),
    ],
)
def test_the_start_that_suits_a_ladder(ladder: NoiseLadder, start: Start) -> None:
    assert suitable_start(ladder) == start


def test_step_sizes_are_one_per_level() -> None:
    with pytest.raises(ValueError, match="2 step sizes for 6 levels"):
        dataclasses.replace(sampler_of(T6, "hmc", 2), step_size=(0.1, 0.2))
    with pytest.raises(ValueError, match="nothing to summarise"):
        summarise([ChainRecord(torch.zeros(2, 3)).close()])
    with pytest.raises(ValueError, match="no chains"):
        summarise([])
