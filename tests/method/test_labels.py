"""Energies that know labels: what the network is given, what it learns of it, and what one label alone changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drl_dist.build import build_network, weight_shapes
from drl_dist.common.batch import Batch
from drl_dist.common.errors import UserError
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.energy.condition import ConditionEmbedding, vectors_of
from drl_dist.training.cost import step_cost
from drl_dist.training.labels import given_labels
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import EAGER, batch, tiny, tiny_unet, waken

CLASSES = ConditionConfig(kind="class", names=("zero", "one", "two"), dropout=0.25)
ATTRIBUTES = ConditionConfig(kind="attributes", names=("a", "b", "c", "d"), dropout=0.25)


def labelled(experiment: Experiment, condition: ConditionConfig = CLASSES, **optim: Any) -> Experiment:
    optim_config = dataclasses.replace(experiment.optim, **optim)
    return dataclasses.replace(experiment, condition=condition, optim=optim_config)


def with_labels(given: Batch, labels: Tensor) -> Batch:
    return dataclasses.replace(given, labels=labels)


def trained(experiment: Experiment, labels: Tensor | None, steps: int = 3) -> TrainState:
    state = TrainState.create(experiment)
    waken(state)
    step = TrainStep(state, experiment, EAGER)
    for index in range(steps):
        step(dataclasses.replace(batch(100 * index), labels=labels))
    return state


def test_labels_are_vectors() -> None:
    assert vectors_of(torch.tensor([2, -1, 0]), "class", 3).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    given = torch.tensor([[1, -1, 0], [0, 0, 0]], dtype=torch.int8)
    assert vectors_of(given, "attributes", 3).tolist() == [[1, -1, 0], [0, 0, 0]]


def test_classes_count_from_their_mean_and_attributes_do_not() -> None:
    for kind, shift in (("class", 0.0), ("attributes", 5.0)):
        embedding = ConditionEmbedding(kind, 3, 4)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            embedding.table.copy_(5 + torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
        rows = embedding(torch.eye(3)).detach()
        torch.testing.assert_close(rows.mean(0), embedding.table.mean(0) * (shift > 0), atol=1e-6, rtol=0)
        assert torch.equal(embedding(torch.zeros(1, 3)), torch.zeros(1, 4))


@pytest.mark.parametrize("make", [tiny, tiny_unet])
@pytest.mark.parametrize("objective", ["recovery", "score_matching"])
def test_one_class_alone_changes_no_bit(make: Any, objective: str) -> None:
    experiment = make()
    plain = trained(labelled(experiment, ConditionConfig(), objective=objective), None)
    one = ConditionConfig(kind="class", names=("only",))
    state = trained(labelled(experiment, one, objective=objective), torch.zeros(12, dtype=torch.int64))
    for name, value in plain.network.state_dict().items():
        assert torch.equal(value, state.network.state_dict()[name]), name
        assert torch.equal(plain.ema.shadow[name], state.ema.shadow[name]), name
    assert not bool(state.network.state_dict()["condition.table"].any())


@pytest.mark.parametrize("make", [tiny, tiny_unet])
@pytest.mark.parametrize("condition", [CLASSES, ATTRIBUTES])
@pytest.mark.parametrize("objective", ["recovery", "score_matching"])
def test_several_labels_are_learned(make: Any, condition: ConditionConfig, objective: str) -> None:
    labels = torch.arange(12) % 3
    if condition.kind == "attributes":
        labels = torch.randint(-1, 2, (12, 4), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    state = trained(labelled(make(), condition, objective=objective, warmup_steps=0), labels)
    network, y, level = state.network, torch.randn(2, 1, 8, 8), torch.tensor([0, 3])
    none = network(y, level)
    assert torch.equal(none, network(y, level, condition=torch.zeros(2, condition.size)))
    other = network(y, level, condition=torch.eye(condition.size)[:2])
    assert bool((other != none).all())


@pytest.mark.parametrize("make", [tiny, tiny_unet])
def test_gradients_reach_the_labels_as_finite_differences_say(make: Any) -> None:
    network = build_network(labelled(make()), dtype=torch.float64)
    state = TrainState.of(network, labelled(make()))
    waken(state)
    y = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level, label = torch.tensor([0, 2, 5]), torch.eye(3)
    assert network.condition is not None
    table = network.condition.table
    (gradient,) = torch.autograd.grad(network(y, level, condition=label).sum(), table)
    with torch.no_grad():
        for place in ((0, 0), (1, 3), (2, 7)):
            table[place] += 1e-5
            above = network(y, level, condition=label).sum()
            table[place] -= 2e-5
            below = network(y, level, condition=label).sum()
            table[place] += 1e-5
            torch.testing.assert_close((above - below) / 2e-5, gradient[place], rtol=1e-4, atol=1e-9)


def test_a_share_of_the_labels_is_dropped_and_ranks_agree() -> None:
    noise, positions = PhiloxNoise(7), torch.arange(20_000)
    labels = positions % 3
    given = given_labels(CLASSES, noise, positions, labels)
    assert given is not None
    kept = given.any(1)
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.01)
    assert torch.equal(given[kept], vectors_of(labels, "class", 3)[kept])
    for rank in range(3):
        mine = given_labels(CLASSES, noise, positions[rank::3], labels[rank::3])
        assert mine is not None and torch.equal(mine, given[rank::3])


def test_any_part_of_the_attributes_is_seen() -> None:
    positions = torch.arange(20_000)
    labels = torch.ones(20_000, 4, dtype=torch.int8)
    given = given_labels(ATTRIBUTES, PhiloxNoise(7), positions, labels)
    assert given is not None
    counts = torch.bincount(given.sum(1).long(), minlength=5) / 20_000
    # A quarter has none at all; of the others, 0 to 4 attributes are equally frequent.
    torch.testing.assert_close(counts, torch.tensor([0.4, 0.15, 0.15, 0.15, 0.15]), atol=0.015, rtol=0)


def test_a_batch_without_labels_is_refused() -> None:
    experiment = labelled(tiny())
    with pytest.raises(UserError, match=r"batch of images: got no labels, expected labels, since condition.kind is"):
        TrainStep(TrainState.create(experiment), experiment, EAGER)(batch(0))


def test_a_model_without_labels_begins_one_with_labels() -> None:
    plain = trained(labelled(tiny_unet(), ConditionConfig()), None)
    experiment = labelled(tiny_unet())
    state = TrainState.create(experiment)
    state.load_tensors(plain.tensors(), plain.step)
    y, level = batch(0).images[:3] / 127.5 - 1, torch.tensor([0, 2, 5])
    label = torch.eye(3)
    assert torch.equal(state.network(y, level, condition=label), plain.network(y, level))
    TrainStep(state, experiment, EAGER)(with_labels(batch(50), torch.arange(12) % 3))
    assert bool(state.network.state_dict()["condition.table"].any()) and state.step == plain.step + 1
    # The reverse, and what else is missing, is refused.
    with pytest.raises(RuntimeError, match=r"condition.table"):
        TrainState.create(labelled(tiny_unet(), ConditionConfig())).load_tensors(state.tensors(), 1)
    tensors = plain.tensors()
    del tensors["weights"]["head.bias"]
    with pytest.raises(RuntimeError, match=r"head.bias"):
        TrainState.create(experiment).load_tensors(tensors, 1)


def test_cost_and_shapes_are_told_with_names_left_to_the_data() -> None:
    experiment = labelled(tiny_unet(), dataclasses.replace(CLASSES, names=()))
    assert step_cost(experiment).update_flop > 0
    assert weight_shapes(labelled(tiny_unet()))["condition.table"] == (3, 16)
    with pytest.raises(UserError, match=r"config field condition.names: got none"):
        build_network(experiment)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "none", "names": ("a",)}, r"condition.names: got \('a',\), expected none where"),
        ({"kind": "class", "names": ("a", "a")}, "condition.names: .* expected different names"),
        ({"kind": "class", "names": ("a", "")}, "condition.names: .* expected different names"),
        ({"kind": "class", "dropout": 1.0}, r"condition.dropout: got 1.0, expected a number in \[0, 1\)"),
    ],
)
def test_broken_conditions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        labelled(tiny(), ConditionConfig(**fields))


MODULE = """
from torch import nn

class Labelled(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3))
        self.of_label = nn.Linear(3, 4, bias=False)

    def forward(self, y, t, condition):
        return (self.layers(y).sum((2, 3)) * (1 + self.of_label(condition))).sum(1)

class Plain(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3))

    def forward(self, y, t):
        return self.layers(y).sum((1, 2, 3))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "labelled_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "labelled_nets"


def test_a_network_of_ones_own_is_given_labels(module: str) -> None:
    experiment = labelled(tiny_unet(network=f"{module}:Labelled"))
    state = trained(experiment, torch.arange(12) % 3)
    network, y, level = state.network, torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    own: nn.Module = network.module  # pyright: ignore[reportAssignmentType]
    torch.testing.assert_close(network(y, level, condition=torch.eye(3)), own(y, level, torch.eye(3)))
    torch.testing.assert_close(network(y, level), own(y, level, torch.zeros(3, 3)))
    with pytest.raises(UserError, match=r"got a forward.* that is given no labels, expected a third argument called"):
        build_network(labelled(tiny_unet(network=f"{module}:Plain")))


def test_a_backbone_of_timm_is_given_labels() -> None:
    experiment = labelled(tiny_unet(network="timm:resnet10t", options='{"stem_type": ""}'), warmup_steps=0)
    state = trained(experiment, torch.arange(12) % 3)
    y, level = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    assert bool((state.network(y, level, condition=torch.eye(3)) != state.network(y, level)).all())
