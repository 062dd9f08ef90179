"""Whether every way of computing gives what float64 on the CPU gives, on small networks that know every path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from benchmarks.accelerator.cases import tiny
from benchmarks.accelerator.work import (
    NEEDS_CUDA,
    Precision,
    Way,
    Work,
    arithmetic,
    engine,
    free_memory,
    fresh_compiler,
    precisions,
    trying,
)
from drl_dist.build import build_sampler
from drl_dist.common.batch import Batch
from drl_dist.config.presets import preset
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.training.chain import GradientEngine
from drl_dist.training.cost import phases, with_numbers
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import waken

UNIT = {"float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoff: the largest relative error of one rounding."""
GROWTH = {"f": 30, "gradient": 150, "chain": 40, "losses": 120, "samples": 20, "resumed": 120}
"""Times that a relative error may be larger than the unit roundoff, by what is compared. On a CPU, with TF32 emulated,
they were at most 18, 66, 7, 44, 3 and 41: where a leaky ReLU bends, a rounding turns a slope into another one."""
NUM_LOSSES, NUM_RESUMED, BATCH = 50, 10, 8
_EAGER = EngineConfig(compile="never", cuda_graph=False)
_COMPILE_SECONDS = 40.0
"""A guess at the time of a network's first compilation, until one was measured."""


@dataclass(frozen=True)
class Reference:
    """What one network gives in float64 on the CPU."""

    name: str
    experiment: Experiment
    state: dict[str, dict[str, Tensor]]
    """Of the beginning, as `TrainState.tensors`."""
    values: dict[str, Tensor]
    """By what is compared."""
    scales: dict[str, float]
    """Size of that in which differences are shares, where it is not that of the values."""


def run(work: Work) -> None:
    """Compare both networks eagerly, then as graphs, with the largest network's f and gradient, then compiled."""
    references, available = [reference(name) for name in ("wide_resnet", "unet")], precisions(work.device)
    pairs: list[tuple[Reference, Precision]] = list(product(references, available))
    for found, precision in pairs:
        compare(work, found, precision, "eager")
    if work.is_small:
        work.tell(network="both", precision="all", way="graph", skipped=NEEDS_CUDA)
        work.tell(network="both", precision="all", way="compiled", skipped=NEEDS_CUDA)
        work.tell(network="both", precision="tf32", way="all", skipped=NEEDS_CUDA)
        return
    large = [full_size()] if work.clock.allows(60) else []
    pairs += product(large, available)
    for found, precision in pairs:
        compare(work, found, precision, "graph")
    expected = _COMPILE_SECONDS
    ways: tuple[Way, ...] = ("compiled, graph", "compiled")
    for found, precision, way in product(references, available, ways):
        if not work.clock.allows(1.5 * expected):
            work.tell(network=found.name, precision=precision, way=way, skipped=f"it would take about {expected:.0f} s")
            continue
        left = work.clock.left()
        compare(work, found, precision, way)
        expected = left - work.clock.left()


def compare(work: Work, found: Reference, precision: Precision, way: Way) -> None:
    """Tell how far one way is from a reference, quantity by quantity."""
    row = {"network": found.name, "precision": precision, "way": way}
    if work.was_tried(**row):
        return
    if work.keeps_failing(way):
        work.tell(**row, skipped="this way has failed before")
        return
    with trying(work, **row), arithmetic(precision), fresh_compiler():
        config = engine(precision, way)
        for what, expected in found.values.items():
            if not work.clock.left():
                work.tell(**row, what=what, skipped="no time left")
                continue
            got = MEASURES[what](found.experiment, found.state, config, work.device).double().cpu()
            scale = found.scales.get(what) or float(expected.norm())
            # Not a number is no smaller than any tolerance.
            error, tolerance = float((got - expected).norm()) / scale, GROWTH[what] * UNIT[precision]
            work.tell(**row, what=what, error=error, tolerance=tolerance, passed=error <= tolerance)
    free_memory(work.device)


def reference(network: str) -> Reference:
    """Everything of a small network of this name in float64 on the CPU."""
    setting = "unet" if network == "unet" else "t6"
    # Warm-up and decay would make the first fifty steps so small that nothing is compared.
    experiment = tiny(with_numbers(phases(preset("digits", setting))[-1][1]), width=16, batch=BATCH)
    optim = replace(experiment.optim, warmup_steps=1, learning_rate=1e-4)
    return _reference(network, replace(experiment, optim=optim), tuple(MEASURES))


def full_size() -> Reference:
    """f and its gradient of the network of CIFAR-10 in the paper's size, of two images."""
    experiment = preset("cifar10")
    experiment = replace(experiment, train=replace(experiment.train, batch_size=2))
    return _reference("wide_resnet of cifar10", experiment, ("f", "gradient"))


def _reference(name: str, experiment: Experiment, measures: tuple[str, ...]) -> Reference:
    cpu = torch.device("cpu")
    state = TrainState.create(experiment, dtype=torch.float64)
    waken(state)
    for _ in range(10):
        state.network.advance_power_iteration()
    begun = {part: {key: value.clone() for key, value in values.items()} for part, values in state.tensors().items()}
    values = {what: MEASURES[what](experiment, begun, _EAGER, cpu, torch.float64).double() for what in measures}
    scales: dict[str, float] = {}
    if "chain" in values:
        # What the chain has moved, not where it began.
        scales["chain"] = float((values["chain"] - _begun(experiment, begun, _EAGER, cpu, torch.float64)[2]).norm())
    return Reference(name, experiment, begun, values, scales)


def batch(experiment: Experiment, number: int) -> Batch:
    """The images of a step."""
    model, size = experiment.model, experiment.train.batch_size
    shape = (size, model.channels, model.resolution, model.resolution)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    return Batch(images, torch.arange(number * size, (number + 1) * size))


def _stepping(
    experiment: Experiment,
    begun: dict[str, dict[str, Tensor]],
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> TrainStep:
    state = TrainState.create(experiment, device, dtype)
    state.load_tensors(begun, 0)
    return TrainStep(state, experiment, config)


def _begun(
    experiment: Experiment,
    begun: dict[str, dict[str, Tensor]],
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[TrainStep, Batch, Tensor]:
    """A step, its images, and where its chains begin, (B, C, H, W)."""
    step, images = _stepping(experiment, begun, config, device, dtype), batch(experiment, 0)
    return step, images, step.draw(images.images, images.positions.to(device)).x_noisy


def _raw_and_gradient(place: int) -> Callable[..., Tensor]:
    def measure(
        experiment: Experiment,
        begun: dict[str, dict[str, Tensor]],
        config: EngineConfig,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        step, _, y = _begun(experiment, begun, config, device, dtype)
        level = torch.arange(len(y), device=device) % experiment.diffusion.num_levels
        return step.gradients.raw_at(level)(y)[place]

    return measure


def _chain(
    experiment: Experiment,
    begun: dict[str, dict[str, Tensor]],
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    step, images, _ = _begun(experiment, begun, config, device, dtype)
    positions = images.positions.to(device)
    return step.run_chain(step.draw(images.images, positions), positions)


def _losses(
    experiment: Experiment,
    begun: dict[str, dict[str, Tensor]],
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    step = _stepping(experiment, begun, config, device, dtype)
    return torch.stack([step(batch(experiment, number)).loss.double().cpu() for number in range(NUM_LOSSES)])


def _resumed(
    experiment: Experiment,
    begun: dict[str, dict[str, Tensor]],
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Losses after as many steps on the CPU, in float32 or float64, whose state another device takes up."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    before = _stepping(experiment, begun, _EAGER, torch.device("cpu"), wide)
    for number in range(NUM_RESUMED):
        before(batch(experiment, number))
    step = _stepping(experiment, begun, config, device, dtype)
    step.state.load_tensors(before.state.tensors(), NUM_RESUMED)
    losses = [step(batch(experiment, number)).loss for number in range(NUM_RESUMED, 2 * NUM_RESUMED)]
    return torch.stack(losses).double().cpu()


def _samples(
    experiment: Experiment,
    begun: dict[str, dict[str, Tensor]],
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    network = _stepping(experiment, begun, config, device, dtype).state.ema_network()
    gradients, shape = GradientEngine(network, config, is_frozen=True), network.image_shape
    sampler = build_sampler(experiment)
    return sampler.sample(gradients.raw_at, PhiloxNoise(0), torch.arange(BATCH, device=device), shape)


MEASURES: dict[str, Callable[..., Tensor]] = {
    "f": _raw_and_gradient(0),
    "gradient": _raw_and_gradient(1),
    "chain": _chain,
    "losses": _losses,
    "samples": _samples,
    "resumed": _resumed,
}
"""(experiment, state of the beginning, engine, device, dtype of the weights) -> a tensor, by what is compared."""
