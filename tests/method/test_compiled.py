"""The network and its gradient as torch's compiler takes them: whole, and how often anew."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from drl_dist.build import build_network, build_sampler
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.presets import SETTINGS, TABLE_6, preset
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.sampling.composition import Concept, composed
from drl_dist.training import chain
from drl_dist.training.chain import GradientEngine
from drl_dist.training.cost import with_numbers
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import batch, tiny_unet
from tests.support import ROOT

PRESETS = [pytest.param(name, marks=[] if name == "digits" else [pytest.mark.slow]) for name in TABLE_6]
COMPILED = EngineConfig(compile="always", cuda_graph=False)


class Graphs:
    """A backend of `torch.compile` that counts the graphs that it is given, and runs them as they are."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.count += 1
        return module.forward


@pytest.fixture(name="graphs")
def _graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """What is compiled in this test must be one graph, without a break; what each process keeps is left as it was."""
    counted = Graphs()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counted, fullgraph=True))
    for name in ("_compiled", "_compiled_gradient"):
        monkeypatch.setattr(chain, name, functools.cache(getattr(chain, name).__wrapped__))
    torch._dynamo.reset()
    yield counted
    torch._dynamo.reset()


def narrow(experiment: Experiment, **model: object) -> Experiment:
    """With all of its resolutions and parts, but few channels and one block at each resolution."""
    small: dict[str, Any] = {"width": 8, "num_res_blocks": 1, "time_hidden_dim": 16, "time_embedding_dim": 8, **model}
    return with_numbers(dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **small)))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_network_and_its_gradient_are_one_graph_each(name: str, setting: str, graphs: Graphs) -> None:
    with torch.device("meta"):
        network = build_network(narrow(preset(name, setting)))
    engine = GradientEngine(network, COMPILED)
    for shift in range(3):
        # Another noise level is another number, not another graph.
        level = torch.full((2,), shift, dtype=torch.int64, device="meta")
        y = torch.empty(2, *network.image_shape, device="meta")
        engine.raw_at(level)(y)
        assert engine.gradient(y, level).shape == y.shape
    assert graphs.count == 2


@pytest.mark.parametrize("kind", ["wide_resnet", "unet"])
def test_a_run_compiles_a_graph_for_each_size_of_a_batch(kind: str, graphs: Graphs) -> None:
    base = tiny_unet(network=kind)
    optim = base.optim
    if kind == "unet":
        optim = dataclasses.replace(optim, first_objective="score_matching", first_objective_steps=2)
    experiment = with_numbers(
        dataclasses.replace(base, optim=optim, condition=ConditionConfig(kind="class", names=("ant", "bee")))
    )
    state = TrainState.create(experiment)
    step = TrainStep(state, experiment, COMPILED)

    def train(count: int) -> int:
        """Steps, and how many graphs there are after them."""
        for _ in range(count):
            given = batch(12 * state.step)
            step(dataclasses.replace(given, labels=torch.arange(12) % 2))
        return graphs.count

    matching = 1 if kind == "unet" else 0
    assert train(2) == (matching or 2)
    # The chain, and the update with both ends of the chains, which differentiates the weights.
    assert train(3) == matching + 2

    def sample(size: int, guidance: float | None = None) -> int:
        """Images of the averaged weights, and how many graphs there are after them."""
        raw_at = GradientEngine(state.ema_network(), COMPILED, is_frozen=True).raw_at
        if guidance is not None:
            raw_at = composed(raw_at, [Concept(1.0, torch.tensor([1.0, 0.0]))], guidance)
        sampler = build_sampler(experiment)
        assert bool(sampler.sample(raw_at, PhiloxNoise(0), torch.arange(size), (1, 8, 8)).isfinite().all())
        return graphs.count

    # Averaged weights are the chain's graph with other numbers, and so are labels; a smaller last batch is another
    # graph, and with guidance a batch has twice as many.
    assert sample(12) == matching + 2
    assert sample(12, guidance=0.0) == matching + 2
    assert sample(5) == matching + 3
    assert sample(6, guidance=1.0) == matching + 3
    assert train(1) == matching + 3


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("my_network:MyNetwork", '{"width": 8}'),
        ("timm:resnet10t", "{}"),
        ("timm:vit_tiny_patch16_224", '{"patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2}'),
    ],
)
def test_networks_of_ones_own_are_whole_too(
    network: str, options: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs/examples"))
    experiment = preset("digits", "unet")
    model = dataclasses.replace(experiment.model, network=network, options=options)
    state = TrainState.create(dataclasses.replace(experiment, model=model))
    level, y = torch.tensor([0, 5]), torch.randn(2, 1, 8, 8)
    kept: list[Tensor] = []
    for network_of in (lambda: state.network, state.ema_network, state.ema_network):
        kept.append(GradientEngine(network_of(), COMPILED).raw_at(level)(y)[1])
    # The module is part of the graph, its weights are not; but whether they are trained is.
    assert graphs.count == 2
    for one in kept:
        torch.testing.assert_close(one, kept[0])
