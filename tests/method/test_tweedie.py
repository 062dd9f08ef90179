"""Starts by Tweedie's formula, on data whose every level is Gaussian, and in training."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels, build_posterior_sampler, build_sampler
from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.config.rules import check_run
from drl_dist.config.tree import DiffusionConfig, Experiment, RunConfig
from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad, RawAtLevel
from drl_dist.energy.analytic import CorrelatedGaussian, Gaussian
from drl_dist.sampling.tweedie import Tweedie
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import EAGER, batch, tiny_unet, waken

Data = Gaussian | CorrelatedGaussian


def experiment_of(num_levels: int = 9, **mcmc: object) -> Experiment:
    """A geometric ladder, steps by the bound, and Tweedie starts."""
    given = preset("digits")
    fields = {"energy_scale": "unit", "step_rule": "bound", "start": "tweedie", "sampling_noise_scale": 1.0} | mcmc
    return dataclasses.replace(
        given,
        diffusion=DiffusionConfig(ladder="geometric", num_levels=num_levels),
        mcmc=dataclasses.replace(given.mcmc, **fields),
    )


def scales(experiment: Experiment) -> tuple[NoiseLadder, Levels]:
    ladder = build_ladder(experiment.diffusion)
    return ladder, build_levels(experiment, ladder)


def exact(data: Data, ladder: NoiseLadder, levels: Levels, calls: list[int] | None = None) -> RawAtLevel:
    """Energies of the data, given in a raw output's scale; counts gradients per level."""

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        (t,) = set(level.tolist())
        distribution = data.level(ladder, t, float(levels.transition_scale[t]))

        def raw(y: Tensor) -> tuple[Tensor, Tensor]:
            if calls is not None:
                calls.append(t)
            value, gradient = distribution.log_density_and_grad(y)
            return value / float(levels.energy_scale[t]), gradient / float(levels.energy_scale[t])

        return raw

    return raw_at


@pytest.mark.parametrize("energy_scale", ["unit", "step_size"])
def test_the_start_is_drawn_around_the_mean_of_y_given_x_noisy(energy_scale: str) -> None:
    experiment = experiment_of(energy_scale=energy_scale)
    ladder, levels = scales(experiment)
    data, x_noisy = Gaussian(torch.tensor(0.3, dtype=torch.float64), 0.4), torch.randn(5, 3, dtype=torch.float64)
    tweedie, raw_at = Tweedie(levels, ladder), exact(data, ladder, levels)
    for t in range(8):
        level = torch.full((5,), t)
        mean, _ = data.level(ladder, t).posterior(x_noisy, float(ladder.std[t + 1]))
        torch.testing.assert_close(tweedie.draw(raw_at, x_noisy, level, torch.zeros_like(x_noisy)), mean)
        moved = tweedie.draw(raw_at, x_noisy, level, torch.ones_like(x_noisy)) - mean
        # The spread of y_t given x_{t+1} if the data are known, by the precisions of both.
        noise = float(levels.transition_scale[t] * ladder.cumulative_std[t])
        expected = (noise**-2 + float(ladder.std[t + 1]) ** -2) ** -0.5
        torch.testing.assert_close(moved, torch.full_like(moved, expected))


@pytest.mark.parametrize("top_level", ["marginal", "conditional"])
def test_above_the_topmost_level_there_is_white_noise(top_level: str) -> None:
    ladder, levels = scales(experiment_of(top_level=top_level))
    data, level = Gaussian(torch.tensor(0.0, dtype=torch.float64), 1.0), torch.full((5,), 8)
    x_noisy, calls = torch.randn(5, 3, dtype=torch.float64), list[int]()
    tweedie, raw_at = Tweedie(levels, ladder), exact(data, ladder, levels, calls)
    # The mean of x_T-1 given x_T, for data that are as white as x_T, times the level's scale.
    mean = levels.transition_scale[8] * ladder.scale[9] * x_noisy
    for only_top in (False, True):
        got = tweedie.draw(raw_at, x_noisy, level, torch.zeros_like(x_noisy), only_top=only_top)
        torch.testing.assert_close(got, mean)
    assert calls == [8]


@pytest.mark.parametrize("energy_scale", ["unit", "step_size"])
def test_the_last_step_is_to_the_mean_of_the_image(energy_scale: str) -> None:
    ladder, levels = scales(experiment_of(energy_scale=energy_scale))
    data, y = Gaussian(torch.tensor(0.3, dtype=torch.float64), 0.02), torch.randn(5, 3, dtype=torch.float64)
    got = Tweedie(levels, ladder).clean(exact(data, ladder, levels)(torch.zeros(5, dtype=torch.int64)), y)
    factor = float(levels.transition_scale[0] * ladder.cumulative_scale[0])
    noise = float(levels.transition_scale[0] * ladder.cumulative_std[0])
    mean, _ = data.affine(factor, 0.0).posterior(y, noise)
    torch.testing.assert_close(got, mean / factor)


STDS = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.4, 0.8], dtype=torch.float64)


@pytest.mark.parametrize("top_level", ["marginal", "conditional"])
@pytest.mark.parametrize(("num_chain_steps", "fraction"), [(3, 0.9), (5, 0.9), (10, 0.6)])
def test_few_steps_from_there_draw_data_of_any_width(num_chain_steps: int, fraction: float, top_level: str) -> None:
    # Of the six directions some are far below, some far above the noise of any level. What the spread of the start
    # lacks, the chains' own excess of variance makes good; from x_noisy, 5 steps leave factors of 1.5 and more.
    experiment = experiment_of(num_chain_steps=num_chain_steps, bound_fraction=fraction, top_level=top_level)
    ladder, levels = scales(experiment)
    data, calls = CorrelatedGaussian(torch.zeros(6, dtype=torch.float64), STDS.square().diag()), list[int]()
    sampler = build_sampler(experiment)
    raw_at = exact(data, ladder, levels, calls)
    samples = sampler.sample(lambda level: in_float64(raw_at(level)), PhiloxNoise(0), torch.arange(8000), (6,))
    expected = data.affine(float(ladder.cumulative_scale[0]), float(ladder.cumulative_std[0])).covariance.diag().sqrt()
    ratio = samples.double().std(0) / expected
    assert bool((ratio - 1).abs().lt(0.07).all()), ratio
    assert len(calls) == 9 * num_chain_steps + 8 == sampler.num_gradients


def in_float64(raw_and_grad: LogDensityAndGrad) -> LogDensityAndGrad:
    def wide(y: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = raw_and_grad(y.double())
        return value.to(y.dtype), gradient.to(y.dtype)

    return wide


def test_without_chains_the_start_is_the_draw_and_the_last_step_takes_the_noise_away() -> None:
    experiment = experiment_of(last_step="tweedie")
    ladder, levels = scales(experiment)
    data, calls = Gaussian(torch.tensor(0.0), 1e-3), list[int]()
    experiment = dataclasses.replace(experiment, mcmc=dataclasses.replace(experiment.mcmc, num_chain_steps=0))
    sampler = build_sampler(experiment)
    raw_at = exact(data, ladder, levels, calls)
    clean = sampler.sample(raw_at, PhiloxNoise(0), torch.arange(500), (4,))
    assert calls == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert sampler.num_gradients == 9
    assert float(clean.std()) < 2e-3
    noisy = dataclasses.replace(sampler, end=None).sample(raw_at, PhiloxNoise(0), torch.arange(500), (4,))
    assert float(noisy.std()) == pytest.approx(0.01, rel=0.1)


def test_images_and_stages_do_not_depend_on_their_batch() -> None:
    experiment = experiment_of(num_chain_steps=2, last_step="tweedie")
    raw_at = exact(Gaussian(torch.tensor(0.0), 0.5), *scales(experiment))
    sampler, ids = build_sampler(experiment), torch.arange(6)
    together = sampler.sample_levels(raw_at, PhiloxNoise(3), ids, (1, 4, 4))
    apart = [sampler.sample_levels(raw_at, PhiloxNoise(3), part, (1, 4, 4)) for part in ids.split(2)]
    assert torch.equal(together, torch.cat(apart, dim=1))


def trainable(**mcmc: object) -> Experiment:
    experiment = tiny_unet()
    fields = {"num_chain_steps": 3, "start": "tweedie", "step_rule": "bound"} | mcmc
    return dataclasses.replace(
        experiment,
        diffusion=DiffusionConfig(ladder="geometric", num_levels=4),
        mcmc=dataclasses.replace(experiment.mcmc, **fields),
    )


@pytest.mark.parametrize("top_level", ["marginal", "conditional"])
def test_training_starts_its_chains_where_sampling_would(monkeypatch: pytest.MonkeyPatch, top_level: str) -> None:
    experiment = trainable(top_level=top_level)
    state = TrainState.create(experiment, dtype=torch.float64)
    waken(state)
    step, given = TrainStep(state, experiment, EAGER), batch(0)
    pairs, sizes, evaluate = step.draw(given.images, given.positions), list[int](), step.gradients.evaluate
    monkeypatch.setattr(step.gradients, "evaluate", lambda prepared, y: sizes.append(len(y)) or evaluate(prepared, y))
    ends = step.run_chain(pairs, given.positions)
    assert sizes == [12] * 4
    assert set(pairs.level.tolist()) == {0, 1, 2, 3}
    for index, t in enumerate(pairs.level.tolist()):
        one = slice(index, index + 1)
        y = x = pairs.x_noisy[one]
        normal, *steps = (
            PhiloxNoise(0).normal(purpose, given.positions[one], t, (chain_step,), (1, 8, 8))[0].double()
            for purpose, chain_step in ((Purpose.TRAIN_START, 0), *((Purpose.TRAIN_CHAIN, k) for k in range(3)))
        )
        a, sigma, tau = step.ladder.scale[t + 1], step.ladder.std[t + 1], step.levels.transition_scale
        score = -x if t == 3 else tau[t + 1] * step.gradients.raw_at(torch.tensor([t + 1]))(tau[t + 1] * x)[1]
        below, above = step.ladder.cumulative_std[t], step.ladder.cumulative_std[t + 1]
        y = tau[t] / a * (x + sigma**2 * score) + tau[t] * below * sigma / above * normal
        precision = 0 if t == 3 and top_level == "marginal" else sigma**-2
        delta = 0.6 / (precision + 1 / (tau[t] * below) ** 2) ** 0.5
        for e in steps:
            gradient = step.gradients.raw_at(torch.tensor([t]))(y)[1] + precision * (x - y)
            y = y + delta**2 / 2 * gradient + delta * e
        torch.testing.assert_close(ends[one], y)


def test_a_start_without_chains_is_for_sampling_and_for_score_matching() -> None:
    drawn_once = trainable(num_chain_steps=0)
    assert build_sampler(drawn_once).num_draws == (0,) * 4
    for begin in (
        lambda: check_run(RunConfig(experiment=drawn_once), complete=False),
        lambda: TrainStep(TrainState.create(drawn_once), drawn_once, EAGER),
    ):
        with pytest.raises(UserError, match="num_chain_steps: got 0, expected at least 1 for recovery from the start"):
            begin()
    experiment = trainable()
    matching = dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, objective="score_matching"))
    mcmc = dataclasses.replace(matching.mcmc, num_chain_steps=0)
    matching = dataclasses.replace(matching, mcmc=mcmc)
    assert build_sampler(matching).num_draws == (0,) * 4
    with pytest.raises(UserError, match="chains, which alone can be held to an observation"):
        build_posterior_sampler(matching)
    with pytest.raises(UserError, match="top_level: got marginal"):
        dataclasses.replace(matching, mcmc=dataclasses.replace(mcmc, start="x_noisy"))
