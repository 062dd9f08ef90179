"""The network: its sizes, its spectral norm, its preparation, and the scales of the levels."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels, build_network, build_wide_resnet
from drl_dist.config.presets import preset
from drl_dist.config.tree import EngineConfig
from drl_dist.energy.layers import Layer, sinusoidal_embedding
from drl_dist.training import chain
from drl_dist.training.chain import GradientEngine


@pytest.mark.parametrize(
    ("name", "num_res_blocks", "millions"),
    [
        ("cifar10", 8, 34.8),
        ("cifar10", 2, 9.1),
        ("celeba64", 6, 56.3),
        ("lsun_church64", 2, 19.2),
        ("lsun_church128", 2, 29.1),
        ("lsun_bedroom128", 5, 71.9),
    ],
)
def test_parameter_counts_of_table_5(
    name: str, num_res_blocks: int, millions: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Estimates of norms that no count depends on, and that take seconds.
    monkeypatch.setattr(Layer, "advance_power_iteration", lambda _: None)
    experiment = preset(name)
    experiment = dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, num_res_blocks=num_res_blocks)
    )
    with torch.device("meta"):  # shapes are enough
        network = build_wide_resnet(experiment)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("resolution_levels", [(1, 2), (1, 1, 2, 2, 2, 4, 4)])
def test_raw_output_is_one_number_per_image_and_depends_on_the_level(resolution_levels: tuple[int, ...]) -> None:
    experiment = preset("digits")
    size = 2 ** len(resolution_levels)
    experiment = dataclasses.replace(
        experiment,
        model=dataclasses.replace(
            experiment.model, width=4, width_multipliers=resolution_levels, resolution=size, time_hidden_dim=16
        ),
    )
    network = build_network(experiment)
    y = torch.randn(3, 1, size, size)
    first, second = network(y, torch.zeros(3, dtype=torch.int64)), network(y, torch.full((3,), 4))
    assert first.shape == (3,)
    assert bool((first != second).all())


def test_effective_weights_have_unit_norm_and_capped_ones_at_most() -> None:
    generator = torch.Generator().manual_seed(0)
    unit = Layer((32, 16, 3, 3), generator=generator)
    capped = Layer((32, 16, 3, 3), scale=1e-10, spectral_norm="cap", generator=generator)
    for layer in (unit, capped):
        for _ in range(300):
            layer.advance_power_iteration()
    largest = torch.linalg.matrix_norm(unit.effective()[0].flatten(1), ord=2).detach()
    assert float(largest) == pytest.approx(1, abs=1e-3)
    # Below norm 1 a capped weight is left as it is.
    assert torch.equal(capped.effective()[0], capped.weight)
    with torch.no_grad():
        capped.weight.mul_(1e8)
    assert float(torch.linalg.matrix_norm(capped.effective()[0].flatten(1), ord=2).detach()) == pytest.approx(
        1, abs=1e-3
    )


def test_the_gradient_flows_through_the_norm_but_not_through_u() -> None:
    layer = Layer((4, 3), generator=torch.Generator().manual_seed(0)).double()
    layer.effective()[0].square().sum().backward()
    # The effective weight does not change with the scale of the weight, so its gradient is orthogonal to it.
    assert layer.weight.grad is not None
    assert float((layer.weight.grad * layer.weight).sum()) == pytest.approx(0, abs=1e-12)


def test_a_learned_scale_multiplies_weight_and_bias() -> None:
    layer = Layer((4, 3), spectral_norm=None, learned_scale=True, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.bias.fill_(2.0)
        assert layer.channel_scale is not None
        layer.channel_scale.fill_(3.0)
    weight, bias = layer.effective()
    torch.testing.assert_close(weight, 3 * layer.weight)
    torch.testing.assert_close(bias, torch.full((4,), 6.0))


def test_the_embedding_has_sines_first_with_the_usual_frequencies() -> None:
    embedding = sinusoidal_embedding(torch.tensor([3]), 8)
    frequency = torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4])
    torch.testing.assert_close(embedding[0], torch.cat([torch.sin(3 * frequency), torch.cos(3 * frequency)]))


def test_initial_weights_follow_the_seed() -> None:
    experiment = preset("digits")
    other = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=1))
    first, again, different = (build_network(e).stem.weight for e in (experiment, experiment, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, different)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("head", ["inner_product", "dense"])
def test_the_engine_gradient_is_that_of_autograd(activation: str, head: str) -> None:
    experiment = preset("digits")
    experiment = dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, width=4, time_hidden_dim=8, activation=activation, head=head),
    )
    network = build_network(experiment, torch.float64)
    level = torch.tensor([0, 3, 5])
    y = torch.randn(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    expected_raw = network(y, level)
    (expected,) = torch.autograd.grad(expected_raw.sum(), y)
    raw, gradient = GradientEngine(network, EngineConfig(compile="never")).raw_at(level)(y)
    torch.testing.assert_close(raw, expected_raw.detach())
    torch.testing.assert_close(gradient, expected)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_numbers() -> None:
    experiment = preset("digits")
    experiment = dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, width=4, width_multipliers=(1,), time_hidden_dim=8)
    )
    network = build_network(experiment)
    level, y = torch.tensor([0, 5]), torch.randn(2, 1, 8, 8)
    plain = GradientEngine(network, EngineConfig(compile="never")).raw_at(level)(y)
    compiled = GradientEngine(network, EngineConfig(compile="always")).raw_at(level)(y)
    for expected, got in zip(plain, compiled, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", ["t1k_dsm", "unet"])
def test_a_compiled_gradient_can_be_differentiated(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced and differentiated as always, but not translated to C++, which takes a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(chain, "_compiled_gradient", chain._compiled_gradient.__wrapped__)
    experiment = preset("digits", setting)
    small = {"width": 4, "width_multipliers": (1, 2), "time_hidden_dim": 8}
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **small))
    network = build_network(experiment)
    with torch.no_grad():
        for parameter in network.parameters():
            # The last layers begin at zero, where most gradients are.
            parameter.add_(0.1 * torch.randn_like(parameter))
    level, y = torch.tensor([0, 5]), torch.randn(2, 1, 8, 8)
    found: list[dict[str, Tensor]] = []
    for choice in ("never", "always"):
        gradient = GradientEngine(network, EngineConfig(compile=choice)).gradient(y, level)
        network.zero_grad()
        (gradient - y).square().sum().backward()
        used = {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}
        found.append({"": gradient.detach()} | used)
    plain, compiled = found
    assert len(plain) > 10
    for name, expected in plain.items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("setting", "expected"), [("t1k_dsm", False), ("unet", True)])
def test_networks_know_whether_their_gradient_uses_every_parameter(setting: str, expected: bool) -> None:
    experiment = preset("digits", setting)
    # The wide ResNet's dense head ends with a bias.
    model = dataclasses.replace(experiment.model, width=4, head="dense")
    network = build_network(dataclasses.replace(experiment, model=model))
    engine = GradientEngine(network, EngineConfig(compile="never"))
    loss = engine.gradient(torch.randn(2, 1, 8, 8), torch.tensor([0, 5])).square().sum()
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    assert all(one is not None for one in found) is network.gradient_uses_all_parameters is expected


def test_released_level_scales() -> None:
    experiment = preset("cifar10")
    levels = build_levels(experiment, build_ladder(experiment.diffusion))
    assert levels.step_size.tolist() == pytest.approx([0.0046, 0.0416, 0.0685, 0.0890, 0.1036, 0.1386], abs=5e-5)
    assert levels.energy_scale.tolist() == pytest.approx([47720, 579, 213, 126, 93, 52], rel=5e-3)
    assert levels.loss_weight.tolist() == pytest.approx([1, 0.627, 0.512, 0.454, 0.419, 0.324], abs=5e-4)
    assert levels.transition_scale[-1] == 1
    assert levels.recovery_precision[-1] == 0


def test_bound_step_sizes_in_units_of_the_released_ones() -> None:
    # Computed without this code: P_t from the T6 numbers, delta_t = .6 / sqrt(P_t), in multiples of b sigma_{t+1}.
    experiment = preset("cifar10")
    experiment = dataclasses.replace(experiment, mcmc=dataclasses.replace(experiment.mcmc, step_rule="bound"))
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    level_scale = levels.step_size / (2e-4**0.5 * ladder.std[1:])
    assert level_scale.tolist() == pytest.approx([1.24, 20.1, 24.7, 25.8, 25.2, 40.8], rel=5e-3)
    torch.testing.assert_close(levels.energy_scale, levels.step_size**-2)
    wider = dataclasses.replace(experiment, mcmc=dataclasses.replace(experiment.mcmc, bound_fraction=1.2))
    torch.testing.assert_close(build_levels(wider, ladder).step_size, 2 * levels.step_size)


def test_scales_as_the_paper_prints_them() -> None:
    experiment = preset("cifar10")
    experiment = dataclasses.replace(
        experiment,
        mcmc=dataclasses.replace(experiment.mcmc, level_scale_power=0.0, energy_scale="unit", top_level="conditional"),
        optim=dataclasses.replace(experiment.optim, loss_weight="none"),
    )
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    torch.testing.assert_close(levels.step_size, 2e-4**0.5 * ladder.std[1:])
    torch.testing.assert_close(levels.energy_scale, torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(levels.loss_weight, torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(levels.transition_scale, ladder.scale[1:])
    torch.testing.assert_close(levels.recovery_precision, ladder.std[1:] ** -2)


def test_level_scales_given_one_by_one() -> None:
    experiment = preset("cifar10")
    values = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    experiment = dataclasses.replace(experiment, mcmc=dataclasses.replace(experiment.mcmc, level_scale_values=values))
    ladder = build_ladder(experiment.diffusion)
    expected = torch.tensor(values, dtype=torch.float64) * 2e-4**0.5 * ladder.std[1:]
    torch.testing.assert_close(build_levels(experiment, ladder).step_size, expected)
