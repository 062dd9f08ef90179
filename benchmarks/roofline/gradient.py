"""One image gradient of an experiment's network, as the chain computes it, of tensors without numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from benchmarks.roofline.fused import Kernel, fused
from benchmarks.roofline.operations import Operation, operations_of
from drl_dist.build import build_network
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.energy.network import EnergyNetwork
from drl_dist.training.chain import GradientEngine
from drl_dist.training.cost import with_numbers

Precision = Literal["float32", "bfloat16"]
Found = TypeVar("Found")


def eager_operations(experiment: Experiment, precision: Precision) -> list[Operation]:
    """The operations of one gradient of a whole batch, without a compiler.

    Args:
        experiment: the science.
        precision: of convolutions, as in `EngineConfig`.
    """
    with _without_numbers(experiment, precision) as (engine, level, y):
        raw_and_grad = engine.raw_at(level)
        return operations_of(lambda: raw_and_grad(y))


def fused_kernels(experiment: Experiment, precision: Precision) -> list[Kernel]:
    """The kernels that it is compiled to for a GPU; arguments as `eager_operations`."""
    return of_compiled(experiment, precision, fused)


def of_compiled(
    experiment: Experiment, precision: Precision, take: Callable[[Callable[[Callable[..., Any]], None]], Found]
) -> Found:
    """What is taken of the compiled gradient; other arguments as `eager_operations`.

    Args:
        take: such as `benchmarks.roofline.fused.fused`.
    """
    with _without_numbers(experiment, precision) as (engine, level, y):
        raw_and_grad = engine.raw_at(level)

        def work(compiled: Callable[..., Any]) -> None:
            engine.evaluate = compiled(engine.network.evaluate)
            raw_and_grad(y)

        return take(work)


@contextmanager
def _without_numbers(experiment: Experiment, precision: Precision) -> Iterator[tuple[GradientEngine, Tensor, Tensor]]:
    """The engine, levels (B,) and images (B, C, H, W)."""
    normalise = functional.group_norm

    def group_norm(
        input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        # On a GPU torch's normalisation begins with this, which on the processor, where it is traced, it goes without.
        return normalise(input.contiguous(), num_groups, weight, bias, eps)

    experiment = with_numbers(experiment)
    with torch.device("meta"):
        network = build_network(experiment)
    count = experiment.train.batch_size
    with FakeTensorMode(), mock.patch.object(functional, "group_norm", group_norm):
        _leave_meta(network)
        engine = GradientEngine(network, EngineConfig(precision=precision, compile="never", cuda_graph=False))
        yield engine, torch.empty(count, dtype=torch.int64), torch.empty(count, *network.image_shape)


def _leave_meta(network: EnergyNetwork) -> None:
    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_strided(value.size(), value.stride(), dtype=value.dtype)))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_strided(value.size(), value.stride(), dtype=value.dtype))
