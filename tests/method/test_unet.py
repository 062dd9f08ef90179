"""The energy made of a U-Net: exact for white Gaussian data at its start, and differentiable twice everywhere."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels, build_network
from drl_dist.common.errors import UserError
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.recovery import Levels
from drl_dist.energy.analytic import Gaussian
from drl_dist.energy.network import EnergyNetwork
from drl_dist.energy.unet import EnergyUNet, num_groups
from drl_dist.training.chain import GradientEngine
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import EAGER, batch, tiny, tiny_unet, waken

ENERGIES = ["inner_product", "squared_distance"]
T = 6


def scales(experiment: Experiment) -> tuple[NoiseLadder, Levels]:
    ladder = build_ladder(experiment.diffusion)
    return ladder, build_levels(experiment, ladder)


def awake(experiment: Experiment) -> EnergyNetwork:
    state = TrainState.create(experiment, dtype=torch.float64)
    waken(state)
    return state.network


def tiny_unet_sizes() -> dict[str, Any]:
    return {
        name: getattr(tiny_unet().model, name)
        for name in ("width", "width_multipliers", "num_res_blocks", "time_embedding_dim", "time_hidden_dim")
    }


def images(count: int = T) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("top_level", ["marginal", "conditional"])
@pytest.mark.parametrize("energy", ENERGIES)
def test_at_its_start_it_is_the_density_of_white_gaussian_data(energy: str, top_level: str) -> None:
    experiment = tiny_unet(energy=energy, data_std=0.4)
    experiment = dataclasses.replace(experiment, mcmc=dataclasses.replace(experiment.mcmc, top_level=top_level))
    ladder, levels = scales(experiment)
    engine = GradientEngine(build_network(experiment, torch.float64), EAGER)
    y = images()
    value, gradient = engine.raw_at(torch.arange(T))(y)
    for t in range(T):
        data = Gaussian(torch.tensor(0.0, dtype=torch.float64), 0.4)
        expected = data.level(ladder, t, float(levels.transition_scale[t])).log_density_and_grad(y[t : t + 1])
        torch.testing.assert_close(value[t : t + 1], expected[0])
        torch.testing.assert_close(gradient[t : t + 1], expected[1])


@pytest.mark.parametrize("energy", ENERGIES)
def test_what_the_network_adds_is_scaled_as_the_formula_says(energy: str) -> None:
    experiment = tiny_unet(energy=energy)
    ladder, levels = scales(experiment)
    network, y, h = build_network(experiment, torch.float64), images(), 0.3
    with torch.no_grad():
        network.head.bias.fill_(h)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    got = network(y, torch.arange(T)).detach()
    for t in range(T):
        scale = float(levels.transition_scale[t])
        s, v = scale * float(ladder.cumulative_std[t]), (scale * float(ladder.cumulative_scale[t]) * 0.5) ** 2
        c = s * math.sqrt(v) / math.sqrt(v + s**2)
        if energy == "inner_product":
            expected = -0.5 * y[t].square().sum() / (v + s**2) + c / s**2 * (y[t] * h).sum()
        else:
            denoised = (1 - s / math.sqrt(v + s**2)) * y[t] + c * h
            expected = -0.5 * (y[t] - denoised).square().sum() / s**2
        torch.testing.assert_close(got[t], expected)


@pytest.mark.parametrize("attention", [(), (4,), (8, 4)])
@pytest.mark.parametrize("energy", ENERGIES)
def test_the_image_gradient_is_differentiable_in_image_and_weights(energy: str, attention: tuple[int, ...]) -> None:
    network = awake(tiny_unet(energy=energy, attention_resolutions=attention))
    engine, level = GradientEngine(network, EAGER), torch.tensor([0, 2, 5])
    y, direction = images(3), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5

    with torch.no_grad():
        slope = (network(y + step * direction, level) - network(y - step * direction, level)) / (2 * step)
    gradient = engine.raw_at(level)(y)[1]
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), slope, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(engine.gradient(y, level).detach(), gradient)

    parameters = list(network.parameters())
    generator = torch.Generator().manual_seed(2)
    moves = [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in parameters]
    seconds = torch.autograd.grad((engine.gradient(y, level) * direction).sum(), parameters)
    expected = sum(float((second * move).sum()) for second, move in zip(seconds, moves, strict=True))

    def at(distance: float) -> float:
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter.add_(move, alpha=distance)
        value = float((engine.gradient(y, level) * direction).sum().detach())
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter.sub_(move, alpha=distance)
        return value

    assert (at(step) - at(-step)) / (2 * step) == pytest.approx(expected, rel=1e-5)


def test_patches_are_channels_of_a_smaller_image() -> None:
    patched = awake(tiny_unet(patch_size=2, attention_resolutions=(2,)))
    sizes = {**tiny_unet_sizes(), "resolution": 4, "channels": 4, "attention_resolutions": (2,)}
    plain = EnergyUNet(**sizes, energy="inner_product", noise_std=patched.noise_std, signal_std=patched.signal_std)
    plain.double().load_state_dict(patched.state_dict())
    y, level = images(), torch.arange(T)
    squares = torch.stack([y[:, 0, row::2, column::2] for row in (0, 1) for column in (0, 1)], dim=1)
    torch.testing.assert_close(patched(y, level), plain(squares, level))
    gradient, expected = (
        GradientEngine(network, EAGER).raw_at(level)(at)[1] for network, at in ((patched, y), (plain, squares))
    )
    torch.testing.assert_close(gradient[:, :, 1::2, 0::2], expected[:, 2:3])


def test_every_parameter_counts_and_every_image_stands_alone() -> None:
    network, level, y = awake(tiny_unet(attention_resolutions=(4,))), torch.arange(T), images()
    together = network(y, level)
    for t in range(T):
        torch.testing.assert_close(network(y[t : t + 1], level[t : t + 1]), together[t : t + 1])
    assert bool((network(y, level.flip(0)) - together).abs().gt(1e-6).all())
    gradients = torch.autograd.grad(together.sum(), list(network.parameters()))
    for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        assert bool((gradient != 0).any()), name


def test_levels_are_told_apart_by_their_signal_to_noise_ratio_alone() -> None:
    # The embedding, and so the time bias, of two ladders agrees where the ratios do.
    experiment = tiny_unet()
    ladder, levels = scales(experiment)
    network = awake(experiment)
    noise, signal = ladder.noise_in_y(levels.transition_scale), 0.5 * ladder.signal_in_y(levels.transition_scale)
    torch.testing.assert_close(network.noise_std, noise)
    torch.testing.assert_close(network.signal_std, signal)
    before = network.prepare(torch.tensor([2])).middle.bias_1
    network.noise_std *= 3
    network.signal_std *= 3
    torch.testing.assert_close(network.prepare(torch.tensor([2])).middle.bias_1, before)
    network.noise_std *= 1.1
    assert not torch.equal(network.prepare(torch.tensor([2])).middle.bias_1, before)


def test_its_constants_are_neither_averaged_nor_kept() -> None:
    experiment = tiny_unet()
    state = TrainState.create(experiment)
    waken(state)
    assert not [name for name in state.tensors()["weights"] if name.endswith("_std")]
    assert state.tensors()["ema"].keys() == dict(state.network.named_parameters()).keys()
    other = TrainState.create(experiment)
    other.load_tensors(state.tensors(), 3)
    y, level = images().float(), torch.arange(T)
    for network in (other.network, state.ema_network()):
        assert torch.equal(network(y, level), state.network(y, level))


@pytest.mark.parametrize("energy", ENERGIES)
def test_steps_of_recovery_change_every_parameter_and_resume_bit_for_bit(energy: str) -> None:
    experiment = tiny_unet(energy=energy)
    straight = TrainState.create(experiment)
    waken(straight)
    first = {name: value.clone() for name, value in straight.network.named_parameters()}
    step = TrainStep(straight, experiment, EAGER)
    saved: dict[str, dict[str, Tensor]] = {}
    for index in range(3):
        if index == 2:
            saved = {part: {n: v.clone() for n, v in tensors.items()} for part, tensors in straight.tensors().items()}
        assert math.isfinite(float(step(batch(12 * index)).loss))
    assert not [name for name, value in straight.network.named_parameters() if torch.equal(value, first[name])]
    again = TrainState.create(experiment)
    again.load_tensors(saved, 2)
    TrainStep(again, experiment, EAGER)(batch(24))
    for part, tensors in straight.tensors().items():
        for name, value in tensors.items():
            assert torch.equal(value, again.tensors()[part][name]), f"{part} {name}"


def test_bfloat16_stays_close_and_sums_in_float32() -> None:
    experiment = tiny_unet(attention_resolutions=(4,))
    state = TrainState.create(experiment)
    waken(state)
    level, y = torch.arange(T), images().float()
    (value, gradient), (rough, rough_gradient) = (
        GradientEngine(state.network, EngineConfig(precision=precision, compile="never")).raw_at(level)(y)
        for precision in ("float32", "bfloat16")
    )
    assert rough.dtype == rough_gradient.dtype == torch.float32
    assert 0 < (rough - value).abs().max() < 0.02 * value.abs().max()
    assert (rough_gradient - gradient).norm() < 0.02 * gradient.norm()


@pytest.mark.parametrize(
    ("width", "expected"), [(1, 1), (3, 1), (4, 1), (8, 2), (24, 6), (96, 24), (128, 32), (160, 32), (384, 32)]
)
def test_groups_divide_the_channels(width: int, expected: int) -> None:
    assert num_groups(width) == expected


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("mcmc", {"energy_scale": "step_size"}, "energy_scale: got step_size, expected unit, since the output of a"),
        (
            "optim",
            {"loss_weight": "inverse_std"},
            "loss_weight: got inverse_std, expected none for recovery with a unet",
        ),
        ("model", {"attention_resolutions": (2,)}, r"attention_resolutions: got \(2,\), .* for a unet some of 8, 4"),
        (
            "model",
            {"patch_size": 0},
            "patch_size: got 0, expected 1 for a wide_resnet, and a positive number for a unet",
        ),
        (
            "model",
            {"patch_size": 8},
            r"resolution: got 8, expected a positive multiple of 16 \(one halving per level of pat",
        ),
        ("model", {"network": "wide_resnet", "patch_size": 2}, "patch_size: got 2, expected 1 for a wide_resnet"),
        ("model", {"data_std": 0.0}, "data_std: got 0.0, expected none, or a positive number"),
        ("model", {"network": "wide_resnet", "attention_resolutions": (4,)}, "expected none for a wide_resnet"),
    ],
)
def test_settings_that_do_not_fit_the_network_are_named(part: str, changes: dict[str, Any], message: str) -> None:
    experiment = tiny_unet()
    with pytest.raises(UserError, match=message):
        dataclasses.replace(experiment, **{part: dataclasses.replace(getattr(experiment, part), **changes)})


def test_the_wide_resnet_is_the_default() -> None:
    assert type(build_network(tiny())).__name__ == "WideResNet"
