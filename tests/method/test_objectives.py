"""What is minimised: negatives from the normal approximation, its likelihood, and denoising score matching."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, get_args

import pytest
import torch
from torch import Tensor, nn

from drl_dist.common.batch import Batch
from drl_dist.common.images import to_unit_range
from drl_dist.config.presets import SETTINGS, preset
from drl_dist.config.tree import NEEDS_NEGATIVES, EngineConfig, Experiment, ObjectiveName
from drl_dist.diffusion.ladder import NoiseLadder, Pairs, draw_pairs
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import Levels
from drl_dist.mcmc.kernel import column
from drl_dist.tracking.metrics import describe
from drl_dist.training.objectives import OBJECTIVES, Outcome
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep, level_bands

EAGER = EngineConfig(compile="never", cuda_graph=False)
SIZE = 6


def tiny(setting: str, **optim: object) -> Experiment:
    experiment = preset("digits", setting)
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, width=4, time_hidden_dim=16, time_embedding_dim=8),
        optim=dataclasses.replace(experiment.optim, **optim),
        train=dataclasses.replace(experiment.train, batch_size=SIZE),
    )


def awake(experiment: Experiment) -> TrainStep:
    """A float64 step whose zero-initialised convolutions carry numbers."""
    state = TrainState.create(experiment, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in state.network.named_parameters():
            if name.endswith("conv_2.weight") or (name == "head.weight" and not bool(value.any())):
                value.normal_(std=0.2, generator=generator)
    return TrainStep(state, experiment, EAGER)


def batch(start: int = 0) -> Batch:
    images = torch.randint(0, 256, (SIZE, 1, 8, 8), generator=torch.Generator().manual_seed(start), dtype=torch.uint8)
    return Batch(images, torch.arange(start, start + SIZE))


def test_the_registry_says_what_the_config_does() -> None:
    assert OBJECTIVES.keys() == NEEDS_NEGATIVES.keys() == set(get_args(ObjectiveName))
    assert {name: kind.needs_negatives for name, kind in OBJECTIVES.items()} == NEEDS_NEGATIVES
    told = {name for kind in OBJECTIVES.values() for name in kind.reports}
    assert [name for name in told if describe(f"{name}/level_0") is None] == []


def test_an_objective_of_its_own_needs_its_class_and_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class RawLikelihood:
        """f(y_pos) - f(y_neg) without weights, of which nothing but the loss is known."""

        needs_negatives: ClassVar[bool] = True
        needs_gradient: ClassVar[bool] = False
        reports: ClassVar[tuple[str, ...]] = ("energy",)

        def __init__(self, experiment: Experiment, ladder: NoiseLadder) -> None: ...

        def outcome(self, forward: nn.Module, pairs: Pairs, y_neg: Tensor | None, here: Levels) -> Outcome:
            assert y_neg is not None
            raw_pos, raw_neg = forward(torch.cat([pairs.y_pos, y_neg]), pairs.level.repeat(2)).chunk(2)
            return Outcome((raw_neg - raw_pos).mean(), {"energy": -raw_pos.detach()})

    monkeypatch.setitem(NEEDS_NEGATIVES, "raw", True)  # type: ignore[call-overload]
    monkeypatch.setitem(OBJECTIVES, "raw", RawLikelihood)  # type: ignore[call-overload]
    given = tiny("t6", objective="raw")
    step = awake(dataclasses.replace(given, mcmc=dataclasses.replace(given.mcmc, num_chain_steps=2)))
    assert step(batch()).metrics().keys() >= {"loss", "grad_norm", "learning_rate"}
    assert {name.split("/")[0] for name in step(batch(SIZE)).metrics() if "/" in name} == {"energy"}


def raw_gradient(step: TrainStep, y: Tensor, level: Tensor) -> Tensor:
    leaf = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(step.state.network(leaf, level).sum(), leaf, create_graph=True)
    return gradient


@pytest.mark.parametrize("setting", sorted(SETTINGS))
def test_every_setting_makes_steps_and_tells_finite_numbers(setting: str) -> None:
    experiment = tiny(setting)
    if experiment.mcmc.num_chain_steps:
        experiment = dataclasses.replace(experiment, mcmc=dataclasses.replace(experiment.mcmc, num_chain_steps=3))
    step = awake(experiment)
    before = step.state.network.stem.weight.clone()
    numbers = step(batch()).metrics() | step(batch(SIZE)).metrics()
    assert all(math.isfinite(value) for value in numbers.values())
    assert not torch.equal(before, step.state.network.stem.weight)
    names = {name.split("/")[0] for name in numbers if "/" in name}
    negatives = {"log_density_pos", "log_density_neg", "log_density_gap", "displacement"}
    assert names == ({"predicted_noise", "noise_error"} if setting in ("t1k_dsm", "unet") else negatives)


@pytest.mark.parametrize("spread", ["transition", "posterior"])
@pytest.mark.parametrize("is_antithetic", [False, True])
def test_the_negative_of_t1k_is_one_draw_of_equation_12(
    monkeypatch: pytest.MonkeyPatch, is_antithetic: bool, spread: str
) -> None:
    experiment = tiny("t1k")
    mcmc = dataclasses.replace(experiment.mcmc, antithetic=is_antithetic, normal_spread=spread)
    step, given = awake(dataclasses.replace(experiment, mcmc=mcmc)), batch()
    pairs = step.draw(given.images, given.positions)
    calls: list[int] = []
    evaluate = step.gradients.evaluate
    monkeypatch.setattr(step.gradients, "evaluate", lambda prepared, y: calls.append(1) or evaluate(prepared, y))
    y_neg = step.run_chain(pairs, given.positions)
    assert len(calls) == 1
    variance = torch.linspace(1e-4, 0.02, 1001, dtype=torch.float64)[pairs.level + 1].reshape(-1, 1, 1, 1)
    # log-density = raw / sigma**2, so the drift sigma**2 grad f is grad raw.
    middle = pairs.x_noisy + raw_gradient(step, pairs.x_noisy, pairs.level)
    std = variance.sqrt()
    if spread == "posterior":
        std = std * (step.ladder.scale[pairs.level + 1] * step.ladder.cumulative_std[pairs.level]).reshape(std.shape)
        std = std / step.ladder.cumulative_std[pairs.level + 1].reshape(std.shape)
    if is_antithetic:
        # The normals of x_t given x_{t+1} and x, by the precisions of both: those that the positives have.
        kept = step.ladder.cumulative_std[pairs.level].square().reshape(-1, 1, 1, 1)
        precision = 1 / kept + (1 - variance) / variance
        x = step.ladder.cumulative_scale[pairs.level].reshape(-1, 1, 1, 1) * to_unit_range(given.images).double()
        centre = (x / kept + (1 - variance).sqrt() / variance * pairs.x_noisy) / precision
        noise = (pairs.y_pos / (1 - variance).sqrt() - centre) * precision.sqrt()
        expected = torch.cat([middle + std * noise, middle - std * noise])
    else:
        noise = PhiloxNoise(0).normal(Purpose.TRAIN_CHAIN, given.positions, pairs.level, (0,), (1, 8, 8))[0].double()
        expected = middle + std * noise
    torch.testing.assert_close(y_neg, expected.detach(), rtol=0, atol=1e-9)


def test_opposite_positives_are_draws_of_the_same_distribution() -> None:
    # Given x_noisy and x, y_pos is normal around x_noisy + sigma**2 score: both draws have its moments.
    step, count = awake(tiny("t1k")), 6000
    pairs = step.draw(torch.full((count, 1, 8, 8), 90, dtype=torch.uint8), torch.arange(count))
    variance = column(1 / step.levels.recovery_precision[pairs.level], pairs.x_noisy)
    centre = pairs.x_noisy + variance * pairs.score
    scale, std = (values[pairs.level + 1] for values in (step.ladder.scale, step.ladder.cumulative_std))
    below = step.ladder.cumulative_std[pairs.level]
    spread = column(scale * below * step.ladder.std[pairs.level + 1] / std, centre)
    for y in (pairs.y_pos, pairs.opposite_y_pos(variance)):
        normal = ((y - centre) / spread).flatten()
        assert abs(normal.mean()) < 4 / math.sqrt(len(normal))
        assert abs(normal.square().mean() - 1) < 4 * math.sqrt(2 / len(normal))
        # Independent of what it is conditioned on.
        assert abs((normal * pairs.score.flatten() * std.repeat_interleave(64)).mean()) < 4 / math.sqrt(len(normal))


@pytest.mark.slow
def test_opposite_draws_change_the_noise_of_the_gradient_but_not_its_mean() -> None:
    given = batch(3)
    gradients: dict[bool, list[Tensor]] = {True: [], False: []}
    for is_antithetic, found in gradients.items():
        for repeat in range(40):
            experiment = tiny("t1k")
            mcmc = dataclasses.replace(experiment.mcmc, antithetic=is_antithetic)
            step = awake(dataclasses.replace(experiment, mcmc=mcmc))
            # The same x_noisy each time; only the draws of y_pos and y_neg given it and x are new.
            pairs = step.draw(given.images, given.positions)
            variance = column(1 / step.levels.recovery_precision[pairs.level], pairs.x_noisy)
            below, above = (step.ladder.cumulative_std[pairs.level + shift] for shift in (0, 1))
            spread = step.ladder.scale[pairs.level + 1] * below * step.ladder.std[pairs.level + 1] / above
            fresh = PhiloxNoise(9).normal(Purpose.BASE, given.positions, 0, (repeat,), (1, 8, 8))[0].double()
            y_pos = pairs.x_noisy + variance * pairs.score + column(spread, fresh) * fresh
            pairs = dataclasses.replace(pairs, y_pos=y_pos)
            y_neg = step.run_chain(pairs, given.positions + 1000 * repeat)
            step.update(pairs, y_neg)
            gradient = step.state.network.stem.weight.grad
            assert gradient is not None
            found.append(gradient.flatten().clone())
    single, double = (torch.stack(gradients[is_antithetic]) for is_antithetic in (False, True))
    assert double.var(0).sum() < 0.3 * single.var(0).sum()
    error = (single.var(0) / len(single) + double.var(0) / len(double)).sqrt()
    assert ((single.mean(0) - double.mean(0)) / error).square().mean() < 2


@pytest.mark.parametrize("loss_weight", ["none", "inverse_std"])
@pytest.mark.parametrize("objective", ["normal_likelihood", "dsm"])
def test_the_matching_losses_are_equations_14_and_37(objective: str, loss_weight: str) -> None:
    step, given = awake(tiny("t1k_dsm", objective=objective, loss_weight=loss_weight)), batch(3)
    pairs = step.draw(given.images, given.positions)
    variance = torch.linspace(1e-4, 0.02, 1001, dtype=torch.float64)
    kept = (1 - variance).cumprod(0)[pairs.level + 1].reshape(-1, 1, 1, 1)
    variance = variance[pairs.level + 1].reshape(-1, 1, 1, 1)
    drift = raw_gradient(step, pairs.x_noisy, pairs.level)  # sigma**2 grad f
    x = given.images.double() / 127.5 - 1
    wanted = pairs.y_pos - pairs.x_noisy
    if objective == "dsm":
        wanted = -variance * (pairs.x_noisy - kept.sqrt() * x) / (1 - kept)
    error = (drift - wanted).square() / (2 * variance)
    if loss_weight == "inverse_std":
        error = error * (1 - kept) / variance
    expected = error.flatten(1).sum(1).mean()
    names = ["levels.1.0.conv_1.weight", "dense_1.weight", "stem.weight"]
    parameters = dict(step.state.network.named_parameters())
    gradients = torch.autograd.grad(expected, [parameters[name] for name in names])
    result = step.update(pairs, None)
    # x is rounded to float32 by the library before it is made float64.
    assert float(result.loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def levels_of_y(step: TrainStep) -> tuple[Tensor, Tensor]:
    """Factor of the data, and standard deviation of the noise, in y_t: (T,), from the cumulative products."""
    keep = step.ladder.scale.square().cumprod(0)[:-1]
    factor = step.levels.transition_scale.double()
    return factor * keep.sqrt(), factor * (1 - keep).sqrt()


@pytest.mark.parametrize("setting", ["t6", "t1k"])
@pytest.mark.parametrize("network", ["wide_resnet", "unet"])
def test_score_matching_regresses_on_the_score_of_y_at_y(setting: str, network: str) -> None:
    experiment = tiny(setting, objective="score_matching")
    if network == "unet":
        model = dataclasses.replace(experiment.model, network=network, data_std=0.4)
        mcmc = dataclasses.replace(experiment.mcmc, energy_scale="unit")
        experiment = dataclasses.replace(experiment, model=model, mcmc=mcmc)
    step, given = awake(experiment), batch(3)
    pairs = step.draw(given.images, given.positions)
    factor, noise = (values[pairs.level].reshape(-1, 1, 1, 1) for values in levels_of_y(step))
    scale = step.levels.energy_scale[pairs.level].reshape(-1, 1, 1, 1)
    x = to_unit_range(given.images).double()
    target = -(pairs.y_pos - factor * x) / noise**2
    error = scale * raw_gradient(step, pairs.y_pos, pairs.level) - target
    weight = noise**2 * (1 if network == "wide_resnet" else 1 + noise**2 / (0.4 * factor) ** 2)
    expected = 0.5 * (weight * error.square()).flatten(1).sum(1).mean()
    names, parameters = ["dense_1.weight", "stem.weight"], dict(step.state.network.named_parameters())
    gradients = torch.autograd.grad(expected, [parameters[name] for name in names])
    result = step.update(pairs, None)
    # Differences of nearly equal images, which were float32 at first, make the target.
    assert float(result.loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


class LinearScore(nn.Module):
    """The gradient of -|y|**2 precision / 2."""

    def __init__(self, precision: Tensor) -> None:
        super().__init__()
        self.precision = nn.Parameter(precision)

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return -column(self.precision[level], y) * y


@pytest.mark.parametrize("top_level", ["marginal", "conditional"])
def test_score_matching_finds_the_density_of_y(top_level: str) -> None:
    # Of white Gaussian data: among all precisions, the loss is smallest at that of y_t. Every image comes with its
    # opposite and the same noise, without which the product of the two would drown the slope at low levels.
    experiment, count = tiny("t6", objective="score_matching"), 4000
    mcmc = dataclasses.replace(experiment.mcmc, top_level=top_level, energy_scale="unit")
    step = awake(dataclasses.replace(experiment, mcmc=mcmc))
    factor, noise = levels_of_y(step)
    x = 0.4 * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, ids = torch.cat([x, -x]), torch.arange(count).repeat(2)
    for t in range(6):
        level = torch.full_like(ids, t)
        pairs = draw_pairs(step.noise, ids, x, level, step.ladder, step.levels.transition_scale)
        forward = LinearScore(1 / ((0.4 * factor) ** 2 + noise**2))
        slopes = []
        for precision in (1.0, 1.05):
            with torch.no_grad():
                forward.precision *= precision
            loss = step.objective.outcome(forward, pairs, None, step.levels.at(level)).loss
            (gradient,) = torch.autograd.grad(loss, forward.precision)
            slopes.append(abs(float(gradient[t])))
        assert slopes[0] < 0.25 * slopes[1]


def test_every_level_counts_alike_for_a_unet() -> None:
    # At h = 0, on white Gaussian data of the expected variance, an error of half a nat per pixel is left everywhere.
    experiment, count = tiny("t6", objective="score_matching"), 2000
    model = dataclasses.replace(experiment.model, network="unet", data_std=0.4)
    mcmc = dataclasses.replace(experiment.mcmc, energy_scale="unit")
    experiment = dataclasses.replace(experiment, model=model, mcmc=mcmc)
    step = TrainStep(TrainState.create(experiment, dtype=torch.float64), experiment, EAGER)
    x = 0.4 * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in range(6):
        level = torch.full((count,), t)
        pairs = draw_pairs(step.noise, torch.arange(count), x, level, step.ladder, step.levels.transition_scale)
        loss = step.objective.outcome(step.forward, pairs, None, step.levels.at(level)).loss
        assert float(loss.detach()) == pytest.approx(32, rel=0.02)


@pytest.mark.parametrize("seed", range(10))
def test_the_two_matching_targets_agree_on_average(seed: int) -> None:
    # E[(y_pos - x_noisy) / sigma**2 | x_noisy, x] is the score of x_noisy given x: regress one on the other.
    step = awake(dataclasses.replace(tiny("t1k"), train=dataclasses.replace(tiny("t1k").train, seed=seed)))
    count = 4000
    images = torch.full((count, 1, 8, 8), 200, dtype=torch.uint8)
    pairs = step.draw(images, torch.arange(count))
    precision = step.levels.recovery_precision[pairs.level].reshape(-1, 1, 1, 1)
    std = step.ladder.cumulative_std[pairs.level + 1].reshape(-1, 1, 1, 1)
    one, other = (pairs.y_pos - pairs.x_noisy) * precision * std, pairs.score * std  # the second is standard normal
    slopes = (one * other).flatten(1).mean(1)
    error = slopes.std() / math.sqrt(count)
    assert abs(slopes.mean() - 1) < 4 * error
    assert error < 0.1


def test_a_long_ladder_is_reported_in_bands_that_cover_it() -> None:
    bands = level_bands(1000)
    assert len(bands) == 16
    assert [t for band in bands.values() for t in range(1000)[band]] == list(range(1000))
    assert next(iter(bands)) == "000-061"
    assert level_bands(6) == {str(t): slice(t, t + 1) for t in range(6)}


def quartic_gradients(sigma: float, theta: float = 0.7) -> tuple[float, float]:
    """Learning gradients of recovery likelihood and of its normal approximation, by quadrature in one dimension.

    The model is f(x) = -theta x**4 / 4 - x**2 / 2; the data are an even mixture of N(-.8, .3**2) and N(.8, .3**2).
    """
    grid = torch.linspace(-4, 4, 401, dtype=torch.float64)
    offsets = torch.linspace(-7, 7, 141, dtype=torch.float64)

    def h(x: Tensor) -> Tensor:  # the derivative of f by theta
        return -(x**4) / 4

    density = sum(torch.exp(-((grid - mean) ** 2) / (2 * 0.3**2)) for mean in (-0.8, 0.8))
    density = density / density.sum()
    weights = torch.exp(-(offsets**2) / 2)
    weights = weights / weights.sum()
    x_noisy = grid[:, None] + sigma * offsets[None]  # (data, noise)
    joint = density[:, None] * weights[None]
    # Recovery: h(x_obs) - E[h(x) | x_noisy] under the model's conditional, by quadrature around x_noisy.
    x = x_noisy[:, :, None] + sigma * offsets[None, None]
    log_conditional = -theta * x**4 / 4 - x**2 / 2 - (x - x_noisy[:, :, None]) ** 2 / (2 * sigma**2)
    conditional = torch.softmax(log_conditional, dim=2)
    recovery = (joint * (h(grid)[:, None] - (conditional * h(x)).sum(2))).sum()
    # Normal approximation, equation 37: d_theta f'(x_noisy) (x_obs - x_noisy - sigma**2 f'(x_noisy)).
    slope = -theta * x_noisy**3 - x_noisy
    normal = (joint * -(x_noisy**3) * (grid[:, None] - x_noisy - sigma**2 * slope)).sum()
    return float(recovery), float(normal)


@pytest.mark.slow
def test_the_normal_approximation_learns_what_recovery_does_as_sigma_vanishes() -> None:
    # Appendix A.5. Both gradients are of order sigma**2; their difference is of a higher order.
    sigmas = [0.02, 0.03, 0.045, 0.07]
    pairs = [quartic_gradients(sigma) for sigma in sigmas]
    logs = torch.tensor(sigmas).log()

    def order(values: list[float]) -> float:
        y = torch.tensor(values, dtype=torch.float64).abs().log()
        x = logs.double() - logs.double().mean()
        return float((x * y).sum() / x.square().sum())

    assert order([recovery for recovery, _ in pairs]) == pytest.approx(2, abs=0.1)
    assert order([recovery - normal for recovery, normal in pairs]) == pytest.approx(4, abs=0.2)
