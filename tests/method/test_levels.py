"""K and c of each level, against the recursion of its chains on Gaussian data and against chains that run alone."""

from __future__ import annotations

import dataclasses
import re
import warnings

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels, build_posterior_sampler, build_sampler
from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.config.rules import check_experiment
from drl_dist.config.tree import DiffusionConfig, EngineConfig, Experiment, McmcConfig
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad
from drl_dist.energy.analytic import CorrelatedGaussian
from drl_dist.training.loop import StepReport, train
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import EAGER, batch, tiny_unet, waken

STEPS = (5, 1, 2, 3)
"""K of levels 0 to 3."""
VARIANCES = torch.tensor([0.001, 0.02, 0.1, 0.4, 1.0, 2.0], dtype=torch.float64)
COUNT = 10_000


def experiment_of(**mcmc: object) -> Experiment:
    """A tiny U-Net on a geometric ladder of four levels, with steps by the bound."""
    fields = {"step_rule": "bound", "energy_scale": "unit", "sampling_noise_scale": 1.0, "num_chain_steps": 3} | mcmc
    return dataclasses.replace(
        tiny_unet(),
        diffusion=DiffusionConfig(ladder="geometric", num_levels=4, first_noise_to_signal=0.01),
        mcmc=McmcConfig(**fields),  # pyright: ignore[reportArgumentType]
    )


def sampled(experiment: Experiment, calls: list[int]) -> Tensor:
    """Variances (6,) of x_0 that the experiment's sampler draws with exact energies; notes the level of each call."""
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    data = CorrelatedGaussian(torch.zeros(6, dtype=torch.float64), VARIANCES.diag())

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        t = int(level[0])
        distribution = data.level(ladder, t, float(levels.transition_scale[t]))

        def raw(y: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(t)
            value, gradient = distribution.log_density_and_grad(y.double())
            return value.to(y.dtype), gradient.to(y.dtype)

        return raw

    x = build_sampler(experiment).sample(raw_at, PhiloxNoise(0), torch.arange(COUNT), (6,))
    return x.double().square().mean(0)


def predicted(experiment: Experiment, steps: tuple[int, ...]) -> Tensor:
    """The same variances from the recursion y <- y + delta**2 / 2 (r x - (p + r) y) + delta e of every chain.

    Args:
        steps: K of each level.
    """
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    below, above, sigma = ladder.cumulative_std[:-1], ladder.cumulative_std[1:], ladder.std[1:]
    scale, variance = ladder.cumulative_scale, torch.ones(6, dtype=torch.float64)
    for t in reversed(range(4)):
        tau, r = levels.transition_scale[t], levels.recovery_precision[t]
        delta = (experiment.mcmc.level_bound_fractions or (0.6,) * 4)[t] / (r + 1 / (tau * below[t]) ** 2) ** 0.5
        p = 1 / (tau**2 * (scale[t] ** 2 * VARIANCES + below[t] ** 2))
        # y = factor x + noise of variance `rest`.
        factor, rest = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        if experiment.mcmc.start == "tweedie":
            of_x = 1 / (scale[t + 1] ** 2 * VARIANCES + above[t] ** 2) if t < 3 else 1.0
            factor = tau / ladder.scale[t + 1] * (1 - sigma[t] ** 2 * of_x) * factor
            rest += (tau * below[t] * sigma[t] / above[t]) ** 2
        with_noise, averages = torch.zeros(6, dtype=torch.float64), experiment.mcmc.kernel == "leimkuhler_matthews"
        for _ in range(steps[t]):
            kept = 1 - delta**2 / 2 * (p + r)
            factor, rest = kept * factor + delta**2 / 2 * r, kept**2 * rest + delta**2 / (2 if averages else 1)
            if averages:
                # Of y and the noise of the last step, which the next one uses again.
                rest, with_noise = rest + kept * delta * with_noise, torch.full_like(rest, float(delta / 2))
        variance = (factor**2 * variance + rest) / tau**2
    return variance


def worst(got: Tensor, wanted: Tensor) -> float:
    """The largest distance of a variance from the wanted one, in standard errors."""
    return float(((got / wanted - 1) / (2 / COUNT) ** 0.5).abs().max())


@pytest.mark.parametrize("top_level", ["marginal", "conditional"])
@pytest.mark.parametrize(("start", "steps"), [("x_noisy", STEPS), ("tweedie", STEPS), ("tweedie", (2, 0, 1, 0))])
def test_images_have_the_variance_of_chains_as_long_as_their_levels_say(
    start: str, steps: tuple[int, ...], top_level: str
) -> None:
    experiment = experiment_of(start=start, top_level=top_level, level_chain_steps=steps)
    calls = list[int]()
    variances = sampled(experiment, calls)
    assert worst(variances, predicted(experiment, steps)) < 4.5
    # Chains in another order would be noticed.
    assert worst(variances, predicted(experiment, steps[::-1])) > 6
    starts = (0, 1, 1, 1) if start == "tweedie" else (0, 0, 0, 0)
    assert [calls.count(t) for t in range(4)] == [k + more for k, more in zip(steps, starts, strict=True)]
    assert len(calls) == build_sampler(experiment).num_gradients


@pytest.mark.parametrize("kernel", ["langevin", "leimkuhler_matthews"])
@pytest.mark.parametrize("start", ["x_noisy", "tweedie"])
def test_images_have_the_variance_of_steps_as_large_as_their_levels_say(start: str, kernel: str) -> None:
    given = experiment_of(start=start, kernel=kernel, level_bound_fractions=(1.5, 0.3, 0.9, 1.2), bound_fraction=0.1)
    variances = sampled(given, [])
    assert worst(variances, predicted(given, (3, 3, 3, 3))) < 4.5
    other = experiment_of(start=start, kernel=kernel, level_bound_fractions=(1.2, 0.9, 0.3, 1.5))
    assert worst(variances, predicted(other, (3, 3, 3, 3))) > 6


def test_sampling_has_a_kernel_of_its_own() -> None:
    mcmc = {"start": "tweedie", "level_bound_fractions": (1.4,) * 4, "num_chain_steps": 2}
    trained, other = experiment_of(**mcmc), experiment_of(kernel="leimkuhler_matthews", **mcmc)
    asked = experiment_of(sampling_kernel="leimkuhler_matthews", **mcmc)
    assert torch.equal(sampled(asked, []), sampled(other, []))
    assert worst(sampled(asked, []), predicted(trained, (2, 2, 2, 2))) > 6
    assert build_posterior_sampler(asked).averages_noise
    assert not build_posterior_sampler(trained).averages_noise
    assert not TrainStep(TrainState.create(asked), asked, EAGER).sampler.averages_noise


def test_one_fraction_is_the_same_to_the_bit_however_it_is_given() -> None:
    steps = [
        build_levels(experiment, build_ladder(experiment.diffusion)).step_size
        for experiment in (experiment_of(bound_fraction=0.9), experiment_of(level_bound_fractions=(0.9,) * 4))
    ]
    assert torch.equal(steps[0], steps[1])


@pytest.mark.parametrize("kernel", ["langevin", "leimkuhler_matthews"])
@pytest.mark.parametrize("start", ["x_noisy", "tweedie"])
def test_in_training_every_chain_makes_the_steps_that_it_would_make_alone(
    monkeypatch: pytest.MonkeyPatch, start: str, kernel: str
) -> None:
    experiment = experiment_of(start=start, kernel=kernel, level_chain_steps=STEPS)
    state = TrainState.create(experiment, dtype=torch.float64)
    waken(state)
    step, given = TrainStep(state, experiment, EAGER), batch(0)
    pairs, sizes, evaluate = step.draw(given.images, given.positions), list[int](), step.gradients.evaluate
    assert set(pairs.level.tolist()) == {0, 1, 2, 3}
    monkeypatch.setattr(step.gradients, "evaluate", lambda prepared, y: sizes.append(len(y)) or evaluate(prepared, y))
    ends = step.run_chain(pairs, given.positions)
    assert sizes == [12] * (5 + (start == "tweedie"))
    for index, t in enumerate(pairs.level.tolist()):
        one = slice(index, index + 1)
        y = x = pairs.x_noisy[one]
        position, level = given.positions[one], torch.tensor([t])
        if start == "tweedie":
            normal = PhiloxNoise(0).normal(Purpose.TRAIN_START, position, t, (0,), (1, 8, 8))[0].double()
            assert step.sampler.start is not None
            y = step.sampler.start.draw(step.gradients.raw_at, x, level, normal)
        delta, precision = step.levels.step_size[t], step.levels.recovery_precision[t]
        before = PhiloxNoise(0).normal(Purpose.TRAIN_BEFORE, position, t, (0,), (1, 8, 8))[0].double()
        for k in range(STEPS[t]):
            e = PhiloxNoise(0).normal(Purpose.TRAIN_CHAIN, position, t, (k,), (1, 8, 8))[0].double()
            gradient = step.gradients.raw_at(level)(y)[1] + precision * (x - y)
            y = y + delta**2 / 2 * gradient + delta * (e if kernel == "langevin" else (before + e) / 2)
            before = e
        torch.testing.assert_close(ends[one], y)


@pytest.mark.parametrize("start", ["x_noisy", "tweedie"])
def test_chains_of_one_length_are_bit_identical_however_it_is_given(start: str) -> None:
    weights = list[dict[str, Tensor]]()
    for mcmc in ({}, {"level_chain_steps": (3, 3, 3, 3), "num_chain_steps": 7}):
        experiment = experiment_of(start=start, **mcmc)
        state = TrainState.create(experiment)
        waken(state)
        step = TrainStep(state, experiment, EAGER)
        for index in range(2):
            step(batch(12 * index))
        weights.append(state.network.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_a_chain_that_has_ended_does_not_feel_gradients_that_are_not_finite() -> None:
    experiment = experiment_of(level_chain_steps=STEPS)
    step, given = TrainStep(TrainState.create(experiment), experiment, EngineConfig(compile="never")), batch(0)
    pairs = step.draw(given.images, given.positions)
    long, calls = (pairs.level == 0) | (pairs.level == 3), 0

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        def raw(y: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            return y.sum((1, 2, 3)), torch.full_like(y, torch.inf if calls > 2 else 0.0)

        return raw

    step.gradients.raw_at = raw_at
    ends = step.run_chain(pairs, given.positions)
    assert ends.isfinite().all((1, 2, 3)).tolist() == (~long).tolist()


def test_the_speed_of_chains_is_that_of_their_mean_length() -> None:
    experiment = experiment_of(level_chain_steps=STEPS)
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, num_steps=1))
    reports = list[StepReport]()

    class Keep:
        def on_step(self, report: StepReport, state: TrainState) -> None:
            reports.append(report)

    state = TrainState.create(experiment)
    train(TrainStep(state, experiment, EAGER), state, experiment, [batch(0)], [Keep()])
    assert reports[0].chain_steps_per_second == pytest.approx(11 / 4 * reports[0].images_per_second)


@pytest.mark.parametrize(
    ("mcmc", "message"),
    [
        (
            {"level_chain_steps": (3, 3)},
            r"config field mcmc\.level_chain_steps: got \(3, 3\), expected none, or 4 numbers \(one per level\), at "
            r"least 1: a 0 needs mcmc\.start tweedie; correct the field\.",
        ),
        ({"level_chain_steps": (3, 0, 3, 3)}, "at least 1: a 0 needs mcmc.start tweedie"),
        ({"level_chain_steps": (3, -1, 3, 3), "start": "tweedie"}, r"4 numbers \(one per level\), at least 0; correct"),
        (
            {"level_bound_fractions": (0.9,)},
            r"config field mcmc\.level_bound_fractions: got \(0\.9,\), expected none, or 4 numbers in \(0, 2\) "
            r"\(one per level\); correct the field\.",
        ),
        ({"level_bound_fractions": (0.9, 0.9, 2.0, 0.9)}, r"level_bound_fractions: .* expected none, or 4 numbers in"),
        ({"level_bound_fractions": (0.9, 0.0, 0.9, 0.9)}, r"level_bound_fractions: .* expected none, or 4 numbers in"),
        (
            {"level_bound_fractions": (0.9,) * 4, "step_rule": "released"},
            r"level_bound_fractions: got \(0\.9, .*\), expected none, since steps of mcmc\.step_rule released are no ",
        ),
        ({"level_chain_steps": STEPS, "num_chain_steps": 0, "antithetic": True}, r"\(mcmc\.level_chain_steps \(5, 1,"),
    ],
)
def test_numbers_that_no_levels_can_have_are_named(mcmc: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        experiment_of(**mcmc)


def test_recovery_is_not_trained_without_a_chain_at_every_level() -> None:
    experiment = experiment_of(level_chain_steps=(5, 0, 2, 3), start="tweedie")
    with pytest.raises(UserError, match=r"mcmc\.level_chain_steps: got \(5, 0, 2, 3\), expected at least 1 for re"):
        TrainStep(TrainState.create(experiment), experiment, EAGER)


@pytest.mark.parametrize(
    ("diffusion", "mcmc", "told"),
    [
        (
            DiffusionConfig(),
            {},
            r"number of 1171 at level 0, where the noise .* 34-fold .* --diffusion\.ladder geometric",
        ),
        (
            DiffusionConfig(ladder="geometric", num_levels=3, first_noise_to_signal=1e-5),
            {},
            r"number of 241 at level \d, .* more levels \(--diffusion\.num-levels\)",
        ),
        (DiffusionConfig(ladder="geometric", num_levels=6, last_noise_to_signal=20.0), {}, None),
        (DiffusionConfig(), {"step_rule": "released"}, None),
        (DiffusionConfig(num_levels=1), {}, None),
    ],
)
def test_a_level_that_no_step_size_serves_is_told(
    diffusion: DiffusionConfig, mcmc: dict[str, object], told: str | None
) -> None:
    experiment = dataclasses.replace(experiment_of(**mcmc), diffusion=diffusion)
    state = TrainState.create(experiment)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = TrainStep(state, experiment, EAGER)
    messages = [str(one.message) for one in caught]
    assert len(messages) == (told is not None)
    assert told is None or re.search(told, messages[0])
    # Without the growth of the noise: the largest precision that the rule knows, times the transition's variance.
    if experiment.mcmc.step_rule == "bound":
        number = (0.6 * step.ladder.std[1:] / step.levels.step_size.double()).square()[:-1]
        assert (told is not None) == bool((number > 100).any())


def test_editing_needs_a_chain_at_every_level() -> None:
    experiment = experiment_of(level_chain_steps=STEPS)
    assert build_posterior_sampler(experiment, num_rounds=2).num_gradients() == 2 * (5 + 1 + 2) + 3
    with pytest.raises(UserError, match=r"got chain steps \(5, 0, 2, 3\), expected chains, which alone"):
        build_posterior_sampler(experiment_of(level_chain_steps=(5, 0, 2, 3), start="tweedie"))


def test_sampling_has_chains_of_its_own_on_the_densities_that_were_trained() -> None:
    own = {"sampling_chain_steps": 1, "sampling_bound_fraction": 1.2}
    trained = {"level_chain_steps": STEPS, "level_bound_fractions": (0.3, 0.4, 0.5, 0.6), "energy_scale": "step_size"}
    experiment = dataclasses.replace(preset("digits"), diffusion=experiment_of().diffusion)
    experiment = dataclasses.replace(experiment, mcmc=McmcConfig(step_rule="bound", **trained))  # pyright: ignore
    check_experiment(experiment)
    levels = build_levels(experiment, build_ladder(experiment.diffusion))
    sampling = dataclasses.replace(experiment, mcmc=dataclasses.replace(experiment.mcmc, **own))
    check_experiment(sampling)
    assert_same_levels(build_levels(sampling, build_ladder(sampling.diffusion)), levels)
    factor = 1.2 / torch.tensor([0.3, 0.4, 0.5, 0.6], dtype=torch.float64)
    for sampler in (build_sampler(sampling), build_posterior_sampler(sampling)):
        torch.testing.assert_close(sampler.levels.step_size, factor * levels.step_size, rtol=1e-12, atol=0)
        assert_same_levels(dataclasses.replace(sampler.levels, step_size=levels.step_size), levels)
        assert sampler.num_draws == (1,) * 4
    for sampler in (build_sampler(experiment), build_posterior_sampler(experiment)):
        assert_same_levels(sampler.levels, levels)
        assert sampler.num_draws == STEPS


def assert_same_levels(one: Levels, other: Levels) -> None:
    for name, value in vars(one).items():
        torch.testing.assert_close(value, getattr(other, name), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling_chain_steps": -1}, r"mcmc\.sampling_chain_steps: got -1, expected none, or at least 1: a 0 needs"),
        ({"sampling_chain_steps": 0}, r"mcmc\.sampling_chain_steps: got 0, expected none, or at least 1: a 0 needs"),
        (
            {"sampling_chain_steps": -1, "start": "tweedie"},
            r"sampling_chain_steps: got -1, expected none, or at least 0",
        ),
        (
            {"sampling_bound_fraction": 2.0},
            r"sampling_bound_fraction: got 2\.0, expected none, or a number in",
        ),
        (
            {"sampling_bound_fraction": 0.0},
            r"sampling_bound_fraction: got 0\.0, expected none, or a number in",
        ),
        (
            {"sampling_bound_fraction": 1.2, "step_rule": "released"},
            "since steps of mcmc.step_rule released",
        ),
    ],
)
def test_impossible_chains_of_sampling_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_experiment(experiment_of(**fields))
    check_experiment(experiment_of(sampling_chain_steps=0, start="tweedie", sampling_bound_fraction=1.9))
