"""Backbones of timm as energies: white Gaussian data at their start, no statistics of a batch, two derivatives."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest
import torch
from torch import nn

from drl_dist.build import build_ladder, build_levels, build_network
from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.config.tree import Experiment
from drl_dist.energy.analytic import Gaussian
from drl_dist.training.chain import GradientEngine
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import EAGER, batch

MODELS = {
    "resnet": ("timm:resnet10t", "{}"),
    "transformer": ("timm:vit_tiny_patch16_224", '{"patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2}'),
    "mobilenet": ("timm:mobilenetv3_small_050", "{}"),
}


def experiment_of(network: str, options: str = "{}", **model: object) -> Experiment:
    given = preset("digits", "unet")
    return dataclasses.replace(
        given,
        model=dataclasses.replace(given.model, network=network, options=options, **model),
        optim=dataclasses.replace(given.optim, first_objective_steps=1),
        train=dataclasses.replace(given.train, batch_size=12),
    )


@pytest.mark.parametrize("kind", MODELS)
def test_it_begins_as_white_gaussian_data_and_trains(kind: str) -> None:
    experiment = experiment_of(*MODELS[kind])
    # Building it has tried that no image sees another one, and that two derivatives exist.
    state = TrainState.create(experiment)
    network, level = state.network, torch.tensor([0, 9])
    assert not [part for part in network.modules() if isinstance(part, nn.BatchNorm2d | nn.ReLU | nn.Hardswish)]
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    y = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    value, gradient = GradientEngine(network, EAGER).raw_at(level)(y)
    for place, t in enumerate(level.tolist()):
        data = Gaussian(torch.tensor(0.0), 0.75).level(ladder, t, float(levels.transition_scale[t]))
        expected = data.log_density_and_grad(y[place : place + 1])
        torch.testing.assert_close(value[place : place + 1], expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient[place : place + 1], expected[1], rtol=1e-4, atol=1e-4)
    step = TrainStep(state, experiment, EAGER)
    first = {name: value.clone() for name, value in network.named_parameters()}
    # Score matching, then recovery: what is behind a head of zeros moves from the second step on.
    assert all(math.isfinite(float(step(batch(12 * index)).loss)) for index in range(3))
    assert not [name for name, value in network.named_parameters() if torch.equal(value, first[name])]


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("timm:resnet1", "{}", "got timm:resnet1, expected a model of timm, such as resnet"),
        ("timm:convnext_atto", "{}", "got timm:convnext_atto, which raises RuntimeError"),
        ("timm:resnet10t", '{"depth": 3}', "model.options: got timm:resnet10t, which raises TypeError"),
        ("timm:resnet10t", '{"pretrained": true}', "model.options: got pretrained, expected arguments of the arch"),
    ],
)
def test_what_cannot_be_made_is_refused(network: str, options: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        build_network(experiment_of(network, options))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_its_output_is_in_nats() -> None:
    given = experiment_of("timm:resnet10t")
    with pytest.raises(UserError, match="expected unit, since the output of a backbone of timm"):
        dataclasses.replace(given, mcmc=dataclasses.replace(given.mcmc, energy_scale="step_size"))


def test_without_timm_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "drl_dist.energy.timm_backbone", raising=False)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="got no package timm, expected timm; pip install"):
        build_network(experiment_of("timm:resnet10t"))
