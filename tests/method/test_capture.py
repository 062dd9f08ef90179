"""What a CUDA graph holds, and what surrounds it in a chain: traced on a device without numbers, which no operation can
leave for the host, and replayed on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.roofline.operations import Operation, is_view, operations_of
from drl_dist.build import build_network, build_sampler
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.import_paths import NEEDS_NEGATIVES
from drl_dist.config.presets import SETTINGS, TABLE_6, preset
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.ladder import Pairs
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.energy.network import EnergyNetwork
from drl_dist.energy.own import OwnNetwork
from drl_dist.sampling.composition import Concept, composed
from drl_dist.training.chain import GradientEngine
from drl_dist.training.cost import phases, with_numbers
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import EAGER, tiny, tiny_unet, waken
from tests.support import ROOT

Kind = Literal["none", "class", "attributes"]
META = torch.device("meta")
"""A device of which nothing can be copied to the host, nor asked what it holds."""
SIZE = 3
PRESETS = [pytest.param(name, marks=[] if name == "digits" else [pytest.mark.slow]) for name in TABLE_6]


def narrow(experiment: Experiment, kind: Kind = "none") -> Experiment:
    """With all of its resolutions and parts, but few channels and one block at each resolution."""
    names = () if kind == "none" else ("ant", "bee", "cow")
    model = dataclasses.replace(experiment.model, width=8, num_res_blocks=1, time_hidden_dim=16, time_embedding_dim=8)
    condition = ConditionConfig(kind=kind, names=names)
    return with_numbers(dataclasses.replace(experiment, model=model, condition=condition))


def network_of(experiment: Experiment) -> EnergyNetwork:
    with META:
        return build_network(experiment)


def given(network: EnergyNetwork, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Levels and images on the network's device."""
    level = torch.zeros(size, dtype=torch.int64, device=network.device)
    return level, torch.empty(size, *network.image_shape, device=network.device)


def check(found: Sequence[Operation], again: Sequence[Operation], device: str = "meta") -> None:
    """The same operations on the same shapes, and so the same allocations; all on the device."""
    assert found == again and len(found) > 30
    assert not [one for one in found if {part.device for part in (*one.reads, *one.writes)} - {device}]


class _FromNumbers(TorchFunctionMode):
    """Sees tensors made of Python's numbers, which are copied to the device: no operation that is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            self.found.append(f"{func.__name__}{args}")
        return func(*args, **(kwargs or {}))


def traced(work: Callable[[], object]) -> list[Operation]:
    """The operations of some work that makes no tensors of Python's numbers."""
    with _FromNumbers() as uploads:
        found = operations_of(work)
    assert uploads.found == []
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_gradient_never_asks_the_host(name: str, setting: str, precision: Literal["float32", "bfloat16"]) -> None:
    network = network_of(narrow(preset(name, setting)))
    engine = GradientEngine(network, dataclasses.replace(EAGER, precision=precision))
    level, y = given(network)
    raw, gradient = engine.raw_at(level)(y)
    assert raw.shape == (SIZE,) and gradient.shape == y.shape and gradient.dtype == y.dtype
    first, other = engine.raw_at(level), engine.raw_at(level + 1)
    check(traced(lambda: first(y)), traced(lambda: other(y)))


@pytest.mark.parametrize("setting", ["t6", "unet"])
def test_labels_and_guidance_are_the_same_gradient_of_as_many_images(setting: str) -> None:
    plain = network_of(narrow(preset("digits", setting)))
    level, images = given(plain, 2 * SIZE)
    of_both = GradientEngine(plain, EAGER).raw_at(level)
    twice = traced(lambda: of_both(images))
    for kind in ("class", "attributes"):
        network = network_of(narrow(preset("digits", setting), kind))
        engine = GradientEngine(network, EAGER)
        level, y = given(network)
        label = torch.empty(SIZE, 3, device=META)
        one, other = engine.raw_at(level, label), engine.raw_at(level)
        check(traced(lambda one=one, y=y: one(y)), traced(lambda other=other, y=y: other(y)))
        guided = composed(engine.raw_at, [Concept(1.0, label)], guidance=1.5)(level)
        found = traced(lambda guided=guided, y=y: guided(y))
        check(found, traced(lambda guided=guided, y=y: guided(y)))
        convolutions = [[one.reads for one in made if "conv" in one.name] for made in (found, twice)]
        assert convolutions[0] == convolutions[1]


@pytest.mark.parametrize("kind", ["none", "class"])
@pytest.mark.parametrize("setting", ["t6", "t1", "t1k", "unet"])
def test_a_chain_never_waits_for_the_host(setting: str, kind: Kind) -> None:
    experiment = narrow(phases(preset("digits", setting))[-1][1], kind)
    if experiment.mcmc.num_chain_steps:
        experiment = dataclasses.replace(experiment, mcmc=dataclasses.replace(experiment.mcmc, num_chain_steps=2))
    step = TrainStep(TrainState.of(network_of(experiment), experiment), experiment, EAGER)
    level, y = given(step.state.network)
    label = None if kind == "none" else torch.empty(SIZE, 3, device=META)
    pairs = Pairs(level=level, y_pos=y, x_noisy=y, score=y, y_score=y, condition=label)
    positions = torch.arange(SIZE, device=META)
    found = traced(lambda: step.run_chain(pairs, positions))
    check(found, traced(lambda: step.run_chain(pairs, positions)))


def uploads(found: Sequence[Operation]) -> list[Operation]:
    """Copies of the host's tables to the device; a single number of the host's goes along with an operation."""
    return [
        one
        for one in found
        if any(part.device == "cpu" and part.shape for part in one.reads)
        and any(part.device == "meta" for part in one.writes)
    ]


@pytest.mark.parametrize("setting", ["t6", "t1k", "unet"])
def test_an_image_takes_tables_to_the_device_once(setting: str) -> None:
    experiment = narrow(preset("digits", setting))
    found: list[int] = []
    for num_levels in (3, 6):
        # Few levels of a linear ladder would not end in white noise.
        ladder = "t6" if experiment.diffusion.ladder == "linear" else experiment.diffusion.ladder
        diffusion = dataclasses.replace(experiment.diffusion, ladder=ladder, num_levels=num_levels)
        made = dataclasses.replace(experiment, diffusion=diffusion)
        network = network_of(made)
        sampler, raw_at = build_sampler(made), GradientEngine(network, EAGER).raw_at
        assert sampler.levels.step_size.device.type == "cpu"
        ids = torch.arange(SIZE, device=META)
        work = partial(sampler.sample, raw_at, PhiloxNoise(0), ids, network.image_shape)
        found.append(len(uploads(operations_of(work))))
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("objective", NEEDS_NEGATIVES)
def test_an_update_takes_no_tables_to_the_device(objective: str) -> None:
    experiment = narrow(preset("digits", "unet"))
    optim = dataclasses.replace(
        experiment.optim, objective=objective, first_objective=None, first_objective_steps=0, loss_weight="none"
    )
    mcmc = dataclasses.replace(experiment.mcmc, top_level="conditional")
    experiment = dataclasses.replace(experiment, optim=optim, mcmc=mcmc)
    step = TrainStep(TrainState.of(network_of(experiment), experiment), experiment, EAGER)
    level, y = given(step.state.network)
    pairs = Pairs(level=level, y_pos=y, x_noisy=y, score=y, y_score=y)

    def update() -> None:
        step.backward(pairs, y if NEEDS_NEGATIVES[objective] else None, None)

    first, again = operations_of(update), operations_of(update)
    assert len(uploads(first)) == {"score_matching": 2, "recovery": 0}.get(objective, 1)
    assert uploads(again) == [] and len(again) > 30


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("my_network:MyNetwork", '{"width": 8}'),
        ("timm:resnet10t", "{}"),
        ("timm:vit_tiny_patch16_224", '{"patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2}'),
    ],
)
def test_networks_of_ones_own_are_traced_without_numbers(
    network: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs/examples"))
    experiment = preset("digits", "unet")
    model = dataclasses.replace(experiment.model, network=network, options=options)
    made = build_network(dataclasses.replace(experiment, model=model))
    with FakeTensorMode() as mode:
        level, y = torch.zeros(SIZE, dtype=torch.int64), torch.empty(SIZE, 1, 8, 8)
        for module in made.modules():
            held: list[dict[str, Any]] = [module._parameters, module._buffers]
            for values in held:
                values.update({name: mode.from_tensor(one) for name, one in values.items() if one is not None})
        raw_and_grad = GradientEngine(made, EAGER).raw_at(level)
        check(traced(lambda: raw_and_grad(y)), traced(lambda: raw_and_grad(y)), "cpu")


class _Asking(torch.nn.Module):
    """Looks at its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return (y if bool(y.sum() > 0) else -y).flatten(1).sum(1) * self.weight


def test_a_network_that_asks_is_seen() -> None:
    asking = OwnNetwork(_Asking(), image_shape=(1, 8, 8), num_levels=3)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(DataDependentOutputException):
        GradientEngine(asking, EAGER).raw_at(torch.zeros(2, dtype=torch.int64))(torch.empty(2, 1, 8, 8))
    assert [one for one in operations_of(lambda: torch.ones(2).sum().item()) if "scalar" in one.name]


class _Tape(TorchDispatchMode):
    """A CUDA graph on the CPU: the operations of one run, each of which `replay` makes again, on the memory that it
    had."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self._made.append((func, args, kwargs or {}, output))
        return output

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, output in self._made:
            if is_view(func):
                continue
            again = func(*args, **kwargs)
            for before, now in zip(pytree.tree_leaves(output), pytree.tree_leaves(again), strict=True):
                if isinstance(before, Tensor) and before is not now:
                    before.copy_(now)


class _Stream:
    def wait_stream(self, other: object) -> None: ...


@pytest.fixture
def _graphs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def graph(tape: _Tape) -> Iterator[None]:
        with tape:
            yield

    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Tape)
    monkeypatch.setattr(torch.cuda, "graph", graph)


@pytest.mark.usefixtures("_graphs_on_the_cpu")
@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("network", ["wide_resnet", "unet"])
def test_a_replayed_gradient_is_that_of_its_levels_labels_and_weights(network: str, is_frozen: bool) -> None:
    base = tiny() if network == "wide_resnet" else tiny_unet()
    experiment = dataclasses.replace(base, condition=ConditionConfig(kind="class", names=("ant", "bee")))
    state = TrainState.create(with_numbers(experiment))
    waken(state)
    assert state.network.condition is not None
    with torch.no_grad():
        state.network.condition.table.normal_(std=3)
    plain, captured = (GradientEngine(state.network, EAGER, is_frozen=is_frozen) for _ in range(2))
    captured.uses_graphs = True
    labels = torch.eye(2)
    kept: list[tuple[Tensor, Tensor]] = []
    for turn, size in enumerate((2, 4, 2, 3, 2)):
        level, y = torch.arange(size) + turn % 2, torch.randn(size, 1, 8, 8)
        label = labels[torch.arange(size) % 2] if turn % 2 else None
        both = [engine.raw_at(level, label) for engine in (plain, captured)]
        for at in (y, 0.5 * y):
            expected, got = (raw_and_grad(at) for raw_and_grad in both)
            kept += [expected, got]
        if not is_frozen:
            with torch.no_grad():
                for parameter in state.network.parameters():
                    parameter.mul_(1.05)
    assert len(captured._graphs) == 3
    # Only now: what a replay gave must outlive the next one.
    for expected, got in zip(kept[::2], kept[1::2], strict=True):
        for one, other in zip(expected, got, strict=True):
            torch.testing.assert_close(other, one)
    assert not torch.equal(kept[0][1], kept[2][1])
