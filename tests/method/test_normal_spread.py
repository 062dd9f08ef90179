"""Recovery at T = 1000 on data whose densities are known: where its learning gradient vanishes, and where it cannot."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from drl_dist.build import build_ladder, build_levels, build_posterior_sampler
from drl_dist.config.presets import preset
from drl_dist.config.tree import EngineConfig
from drl_dist.diffusion.ladder import Pairs, draw_pairs
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.sampling.long_run import start_level
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep

LEVELS = (0, 1, 10, 100, 999)
PIXELS = 64


class GaussianEnergy(nn.Module):
    """log-density -precision |y|**2 / 2, with one precision for all pixels, divided by the energy scale."""

    def __init__(self, precision: float, scale: float) -> None:
        super().__init__()
        self.precision, self.scale = nn.Parameter(torch.tensor(precision, dtype=torch.float64)), scale

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return -self.precision / 2 * y.square().flatten(1).sum(1) / self.scale

    def raw_at(self, level: Tensor) -> LogDensityAndGrad:
        precision = float(self.precision.detach())
        return lambda y: (self(y, level).detach(), -precision * y / self.scale)


def tiny(spread: str, is_antithetic: bool) -> TrainStep:
    experiment = preset("digits", "t1k")
    experiment = dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, width=4, time_hidden_dim=16, time_embedding_dim=8),
        mcmc=dataclasses.replace(experiment.mcmc, normal_spread=spread, antithetic=is_antithetic),
    )
    state = TrainState.create(experiment, dtype=torch.float64)
    return TrainStep(state, experiment, EngineConfig(compile="never", cuda_graph=False))


def drawn(step: TrainStep, t: int, precision: float, data_std: float, count: int) -> tuple[Pairs, Tensor, float]:
    """Pairs of white Gaussian data, their negatives, and the learning gradient by the precision as a share of its half,
    that of the positives: positive where learning makes the precision larger."""
    ids = torch.arange(count)
    x = data_std * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    level = torch.full((count,), t)
    pairs = draw_pairs(step.noise, ids, x, level, step.ladder, step.levels.transition_scale)
    energy = GaussianEnergy(precision, float(step.levels.energy_scale[t]))
    step.gradients.raw_at = energy.raw_at
    y_neg = step.run_chain(pairs, ids)
    here = step.levels.at(level)
    (slope,) = torch.autograd.grad(step.objective.outcome(energy, pairs, y_neg, here).loss, energy.precision)
    half = pairs.y_pos.square().flatten(1).sum(1).mean() / 2
    weight = float(here.loss_weight[0]) / energy.scale
    return pairs, y_neg, -float(slope) / (weight * float(half))


def density_of_x(step: TrainStep, t: int, data_std: float) -> float:
    """The precision that denoising score matching learns at level t: that of x_{t+1}."""
    scale, std = float(step.ladder.cumulative_scale[t + 1]), float(step.ladder.cumulative_std[t + 1])
    return 1 / ((scale * data_std) ** 2 + std**2)


def test_the_preset_draws_with_the_posterior_spread() -> None:
    assert preset("digits", "t1k").mcmc.normal_spread == "posterior"
    assert {preset("digits", name).mcmc.normal_spread for name in ("t6", "t1", "t1k_dsm")} == {"transition"}


@pytest.mark.parametrize("t", LEVELS)
def test_in_flat_directions_the_negatives_of_the_true_energy_are_the_positives(t: int) -> None:
    # Of data that do not vary, y_t given x_{t+1} is a posterior of known mean and spread: that of the positives.
    step = tiny("posterior", is_antithetic=True)
    pairs, y_neg, slope = drawn(step, t, density_of_x(step, t, 0.0), 0.0, 8)
    variance = 1 / step.levels.recovery_precision[t]
    expected = torch.cat([pairs.y_pos, pairs.opposite_y_pos(variance)])
    torch.testing.assert_close(y_neg, expected, rtol=0, atol=1e-12)
    assert abs(slope) < 1e-9


@pytest.mark.parametrize("t", [0, 10, 999])
def test_separate_draws_have_the_same_learning_gradient(t: int) -> None:
    count = 1000
    step = tiny("posterior", is_antithetic=False)
    precision = density_of_x(step, t, 0.0)
    # Of the difference of two variances, each estimated from so many pixels.
    error = 2 * (1 / (count * PIXELS)) ** 0.5
    assert abs(drawn(step, t, precision, 0.0, count)[2]) < 4 * error


@pytest.mark.parametrize("is_antithetic", [False, True])
def test_with_the_spread_of_the_transition_the_lowest_level_has_no_fixed_point(is_antithetic: bool) -> None:
    step = tiny("transition", is_antithetic)
    # y_0 varies less than the transition's noise alone does.
    assert float(step.ladder.scale[1] * step.ladder.cumulative_std[0]) < float(step.ladder.std[1])
    truth = density_of_x(step, 0, 0.0)
    slopes = [drawn(step, 0, factor * truth, 0.0, 500)[2] for factor in (0.5, 1.0, 1.5, 5.0)]
    assert min(slopes) > 0.15
    # From some level on there is one, though not at the truth.
    assert float(step.ladder.scale[3] * step.ladder.cumulative_std[2]) > float(step.ladder.std[3])


@pytest.mark.parametrize(("spread", "t", "low", "high"), [("posterior", 0, 0.7, 0.8), ("transition", 0, 0.99, 1.01)])
def test_in_directions_in_which_the_data_vary_the_fixed_point_is_near(
    spread: str, t: int, low: float, high: float
) -> None:
    # y_t given x_{t+1} alone has variance sigma**2 (1 - sigma**2 / V) with V that of x_{t+1}: nearly sigma**2 here. The
    # spread given the data is less, by sigma**2 / (2 cumulative_std**2) of the precision; the variances of y agree.
    step = tiny(spread, is_antithetic=True)
    variance = 1 / density_of_x(step, t, 0.5)
    sigma = float(step.ladder.std[t + 1])
    total = float(step.ladder.cumulative_std[t + 1])
    noise = sigma**2 * (1 - sigma**2 / total**2) if spread == "posterior" else sigma**2
    # (1 - sigma**2 p)**2 V + noise = V - sigma**2
    fixed_point = (1 - ((variance - sigma**2 - noise) / variance) ** 0.5) / sigma**2
    assert low < fixed_point * variance < high
    for factor, sign in ((0.5, 1), (1.5, -1)):
        slope = drawn(step, t, factor * fixed_point, 0.5, 1500)[2]
        assert sign * slope > 0


def flat(level: Tensor) -> LogDensityAndGrad:
    """A density of no gradient: what is drawn is x_{t+1} and noise."""
    return lambda y: (y.new_zeros(len(y)), torch.zeros_like(y))


@pytest.mark.parametrize("spread", ["posterior", "transition"])
def test_long_runs_and_denoising_draw_with_the_spread_too(spread: str) -> None:
    experiment, count = preset("digits", "t1k"), 1000
    mcmc = dataclasses.replace(experiment.mcmc, normal_spread=spread)
    experiment = dataclasses.replace(experiment, mcmc=mcmc)
    ladder = build_ladder(experiment.diffusion)
    below, std, scale = float(ladder.cumulative_std[0]), float(ladder.std[1]), float(ladder.scale[1])
    x, ids = torch.zeros(count, 1, 8, 8, dtype=torch.float64), torch.arange(count)
    start = start_level(build_levels(experiment, ladder), 0, flat, PhiloxNoise(0), ids, x)
    posterior = scale * below * std / float(ladder.cumulative_std[1])
    assert float(start.y.std()) == pytest.approx(posterior if spread == "posterior" else std, rel=0.02)
    # Denoising, of less noise than x_1 has: that beyond x_0 takes the place of the transition's.
    noise_std = 0.012
    made = build_posterior_sampler(experiment).denoise(flat, PhiloxNoise(0), ids, x, noise_std)
    further = ((float(ladder.cumulative_scale[0]) * noise_std) ** 2 - below**2) ** 0.5
    posterior = below * further / (below**2 + further**2) ** 0.5
    assert float(made.std()) == pytest.approx(posterior if spread == "posterior" else further, rel=0.02)
