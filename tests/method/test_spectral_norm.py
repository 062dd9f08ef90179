"""The spectral norm of the released network against its formulas, and the one of the first version beside it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_wide_resnet
from drl_dist.config.presets import TABLE_6, preset
from drl_dist.config.tree import Experiment, ModelConfig
from drl_dist.energy.layers import Layer
from drl_dist.energy.wide_resnet import WideResNet


def network(rule: str, activation: str = "leaky_relu") -> WideResNet:
    """Float64, with singular vectors as they are early in training: far from converged."""
    experiment = preset("digits")
    model = dataclasses.replace(
        experiment.model,
        width=4,
        time_embedding_dim=8,
        time_hidden_dim=16,
        spectral_norm_rule=rule,
        activation=activation,
    )
    made = build_wide_resnet(dataclasses.replace(experiment, model=model), torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if name.endswith(".u"):
                value.copy_(torch.nn.functional.normalize(torch.randn(len(value), generator=generator), dim=0))
            elif name.endswith("bias"):
                value.normal_(std=0.1, generator=generator)
    return made


def released_dense(weights: dict[str, Tensor], name: str, x: Tensor, *, is_normalised: bool) -> Tensor:
    """x W / sigma + b with W of shape (in, out) and u a row, as in a forward pass of the released code: v from u, then
    u from v, and sigma from these two."""
    kernel, bias = weights[f"{name}.weight"].T, weights[f"{name}.bias"]
    if is_normalised:
        u = weights[f"{name}.u"][None]
        v = u @ kernel.T
        v = v / v.square().sum().sqrt()
        u = v @ kernel
        u = u / u.square().sum().sqrt()
        kernel = kernel / (v @ kernel @ u.T)
    return x @ kernel + bias


def released_head(weights: dict[str, Tensor], level: Tensor, activation: str, *, is_normalised: bool) -> Tensor:
    """The vector that the features' sum is multiplied by, (B, C)."""

    def act(x: Tensor) -> Tensor:
        return torch.maximum(x, 0.2 * x) if activation == "leaky_relu" else x / (1 + (-x).exp())

    frequency = torch.exp(-math.log(10000) / 3 * torch.arange(4, dtype=torch.float64))
    angle = level.double()[:, None] * frequency
    x = torch.cat([angle.sin(), angle.cos()], 1)
    x = released_dense(weights, "dense_1", x, is_normalised=is_normalised)
    x = released_dense(weights, "dense_2", act(x), is_normalised=is_normalised)
    return released_dense(weights, "head", act(x), is_normalised=False)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("rule", ["released", "own"])
def test_the_embedding_is_that_of_the_released_network(rule: str, activation: str) -> None:
    made, level = network(rule, activation), torch.arange(6)
    weights = {name: value.detach() for name, value in made.state_dict().items()}
    with torch.no_grad():
        found = made.prepare(level).head
    expected = released_head(weights, level, activation, is_normalised=rule == "released")
    # The sinusoids are computed in float32.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    if rule == "released":
        other = released_head(weights, level, activation, is_normalised=False)
        assert float((other - expected).abs().max()) > 1e-2


def test_a_norm_is_that_of_one_power_iteration_from_u() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Layer((6, 4, 3, 3), norm_rule="released", generator=generator).double()
    u = torch.nn.functional.normalize(torch.randn(6, generator=generator, dtype=torch.float64), dim=0)
    assert layer.u is not None
    layer.u.copy_(u)
    weight = layer.weight.detach().flatten(1)
    v = weight.T @ u / (weight.T @ u).norm()
    before, largest = (weight.T @ u).norm(), torch.linalg.matrix_norm(weight, ord=2)
    norm = (weight @ v).norm()
    # Nearer to the largest singular value than half an iteration is, which is the rule of the first version.
    assert float(before) < 0.99 * float(norm) < 0.99 * float(largest)
    torch.testing.assert_close(layer.effective()[0].detach().flatten(1), weight / norm)
    assert torch.equal(layer.u, u), "a forward pass has no side effect"
    layer.norm_rule = "own"
    torch.testing.assert_close(layer.effective()[0].detach().flatten(1), weight / before)


def test_the_gradient_takes_both_singular_vectors_for_constants() -> None:
    layer = Layer((5, 3), norm_rule="released", generator=torch.Generator().manual_seed(0)).double()
    assert layer.u is not None
    layer.u.copy_(torch.nn.functional.normalize(torch.ones(5, dtype=torch.float64), dim=0))
    weight, factor = layer.weight.detach(), torch.arange(15, dtype=torch.float64).reshape(5, 3)
    v = torch.nn.functional.normalize(weight.T @ layer.u, dim=0)
    u = torch.nn.functional.normalize(weight @ v, dim=0)
    norm = u @ weight @ v
    (layer.effective()[0] * factor).sum().backward()
    # d(W / n) with dn = u v^T.
    expected = factor / norm - (factor * weight).sum() / norm**2 * torch.outer(u, v)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, expected)


def test_presets_are_as_released_and_records_without_the_field_as_they_were() -> None:
    assert {preset(name).model.spectral_norm_rule for name in TABLE_6} == {"released"}
    assert ModelConfig().spectral_norm_rule == Experiment(preset="").model.spectral_norm_rule == "own"
    own, released = (set(network(rule).state_dict()) for rule in ("own", "released"))
    assert released - own == {"dense_1.u", "dense_2.u"}
    assert own < released


def test_without_spectral_norm_the_rule_is_of_no_meaning() -> None:
    experiment = preset("digits")
    made = [
        build_wide_resnet(
            dataclasses.replace(
                experiment,
                model=dataclasses.replace(experiment.model, width=4, spectral_norm=False, spectral_norm_rule=rule),
            ),
            torch.Generator().manual_seed(0),
        )
        for rule in ("released", "own")
    ]
    y, level = torch.zeros(2, 1, 8, 8), torch.tensor([0, 3])
    assert torch.equal(made[0](y, level), made[1](y, level))
