"""What a training step costs, before it is made: parameters, forwards of the network, FLOP, memory.

A step is traced on tensors that have shapes but no numbers, chain and update as they are, so nothing here knows how a
network, a kernel or an objective is made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils.flop_counter import FlopCounterMode

from drl_dist.build import build_network
from drl_dist.common.batch import Batch
from drl_dist.common.errors import UserError
from drl_dist.config.from_data import left_to_data
from drl_dist.config.import_paths import import_paths
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.training.allocated import AllocatedBytes
from drl_dist.training.objectives import Objective
from drl_dist.training.sharded import check_shares, share_bytes
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep

UNTRACEABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
"""What torch raises where the result of an operation depends on numbers that a traced tensor does not have."""
_PLACEHOLDERS = {
    "model.data_std": 0.5,
    "diffusion.first_noise_to_signal": 1e-4,
    "diffusion.last_noise_to_signal": 140.0,
}
"""For fields that are left to the data: nothing that is counted depends on them."""
_NUM_LABELS = 10
"""Names of labels that are left to the data, which cost next to nothing."""


class UntraceableError(UserError):
    """A network, or another part of the user's own, can only be asked with numbers, or on a device, what it costs."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """The cost of one training step; bytes are those of tensors, without what libraries take for themselves."""

    num_parameters: int
    images_per_worker: int
    """Images of the largest share of a batch."""
    chain_gradients: int
    """Forwards of the network in the chain, each followed by its image gradient; 0 for objectives without negatives.
    The update makes one more forward, of both ends of the chains."""
    chain_flop: int
    """Floating-point operations of products and convolutions in the chain, of one worker, two for each multiply-add."""
    update_flop: int
    """The same in the update."""
    state_bytes: int
    """Weights, their average, and the optimiser's moments, which a worker holds all the time: all, or its share."""
    chain_bytes: int
    """Most that is held at once during the chain, the state included."""
    update_bytes: int
    """Most that is held at once during the update, the state included."""

    @property
    def flop(self) -> int:
        """Floating-point operations of one worker in one step."""
        return self.chain_flop + self.update_flop

    @property
    def peak_bytes(self) -> int:
        """Most that a worker holds at once."""
        return max(self.chain_bytes, self.update_bytes)


class _FlopCounter(FlopCounterMode):
    """torch's counter without its look at the modules in which operations are made.

    For that it hooks onto the inputs of modules, and a gradient to such an input that is a leaf, as images are to
    networks of the user's, then ends with an error (`torch.autograd.graph.register_multi_grad_hook`).
    """

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = _NoModules()


class _NoModules:
    """In the place of `torch.utils.module_tracker.ModuleTracker`."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_given: object) -> None:
        pass


def count_flop(work: Callable[[], object]) -> int:
    """Floating-point operations of the products and convolutions that some work makes, two for each multiply-add."""
    with _FlopCounter() as counter:
        work()
    return counter.get_total_flops()


def step_cost(experiment: Experiment, *, num_workers: int = 1, engine: EngineConfig | None = None) -> StepCost:
    """What a step of the experiment's last objective costs each worker; takes seconds, more for large networks.

    Args:
        experiment: the science; what it leaves to the data need not be known.
        num_workers: workers that share a batch.
        engine: its precision, and what it does for memory; auto is plain. Shares are those of so many workers.

    Raises:
        UserError: the experiment can only be sampled from, or its network's weights cannot be divided.
        UntraceableError: its network, or another part of the user's own, cannot be traced without numbers.
    """
    experiment = with_numbers(experiment)
    experiment = replace(experiment, optim=replace(experiment.optim, first_objective=None, first_objective_steps=0))
    share = math.ceil(experiment.train.batch_size / num_workers)
    engine = replace(engine or EngineConfig(), compile="never", cuda_graph=False)
    try:
        # Warnings are for whoever trains.
        with warnings.catch_warnings(action="ignore"):
            cost, network = _traced(experiment, share, engine)
        if not engine.shard:
            return cost
        check_shares(network, experiment)
        return _in_shares(cost, network, num_workers)
    except UNTRACEABLE as error:
        raise _untraceable(experiment, "an operation whose result depends on numbers", error) from error
    except UserError:
        raise
    except Exception as error:
        # Of the user's own may be what works on a GPU alone, such as kernels in CUDA.
        if not import_paths(experiment):
            raise
        raise _untraceable(experiment, f"{type(error).__name__} where it is traced", error) from error


def _untraceable(experiment: Experiment, got: str, error: Exception) -> UntraceableError:
    return UntraceableError(
        f"network {experiment.model.network}",
        got=f"{got} ({' '.join(str(error).split())[:100]})",
        expected="operations that can be traced with shapes alone",
        remedy="start without an estimate, or leave .item() and the like out of the network",
    )


def phases(experiment: Experiment) -> list[tuple[int, Experiment]]:
    """The objectives of a run one after the other: how many steps, and an experiment with this objective alone."""
    optim, total = experiment.optim, experiment.train.num_steps
    first = min(optim.first_objective_steps, total) if optim.first_objective is not None else 0
    found: list[tuple[int, Experiment]] = []
    for steps, objective in ((first, optim.first_objective), (total - first, optim.objective)):
        if steps and objective is not None:
            alone = replace(optim, objective=objective, first_objective=None, first_objective_steps=0)
            found.append((steps, replace(experiment, optim=alone)))
    return found


def with_numbers(experiment: Experiment) -> Experiment:
    """The experiment with some numbers for what it leaves to the data, on which nothing that is counted depends."""
    for name in left_to_data(experiment):
        part, _, field = name.partition(".")
        changed = replace(getattr(experiment, part), **{field: _PLACEHOLDERS[name]})
        experiment = replace(experiment, **{part: changed})
    condition = experiment.condition
    if condition.kind != "none" and not condition.names:
        names = tuple(str(number) for number in range(_NUM_LABELS))
        experiment = replace(experiment, condition=replace(condition, names=names))
    return experiment


def _labels(experiment: Experiment, count: int) -> Tensor | None:
    """Labels of so many images, as `Batch.labels`."""
    kind, size = experiment.condition.kind, experiment.condition.size
    if kind == "none":
        return None
    return torch.empty(count, dtype=torch.int64) if kind == "class" else torch.empty(count, size, dtype=torch.int8)


def _traced(experiment: Experiment, share: int, engine: EngineConfig) -> tuple[StepCost, nn.Module]:
    # Constants, such as the noise of each level, stay real.
    mode, model = FakeTensorMode(allow_non_fake_inputs=True), experiment.model
    network = build_network(experiment)
    memory = AllocatedBytes()
    with memory, mode:
        images = torch.empty(share, model.channels, model.resolution, model.resolution, dtype=torch.uint8)
        batch = Batch(images, torch.empty(share, dtype=torch.int64), labels=_labels(experiment, share))
        _forget_numbers(network)
    with memory:
        state = TrainState.of(network, experiment)
        # Ranks that look at their memory together have backends for GPUs alone, and would exchange what has no numbers.
        step = TrainStep(state, experiment, engine, is_alone=True)
        # What the step before has left: gradients, and the optimiser's moments.
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        state.optimizer.step()
        memory.begin()
        with _FlopCounter() as chain:
            forwards = _Forwards(step.gradients.evaluate, chain.get_total_flops, _any_raw)
            step.gradients.evaluate = forwards
            pairs, y_neg, meter = step.negatives(batch)
            step.gradients.evaluate = forwards.original
        chain_bytes = memory.peak
        memory.begin()
        with _FlopCounter() as update:
            updates = _Forwards(step.forward, update.get_total_flops, _any_output(step.objective))
            if step.objective.is_mean:
                step.forward = cast(nn.Module, updates)
            _, grad_norm, _ = step.backward(pairs, y_neg, meter)
            step.advance(grad_norm)
        cost = StepCost(
            num_parameters=sum(parameter.numel() for parameter in network.parameters()),
            images_per_worker=share,
            chain_gradients=round(sum(forwards.sizes) / share),
            chain_flop=chain.get_total_flops() + forwards.flop_left_out,
            update_flop=update.get_total_flops() + updates.flop_left_out,
            state_bytes=state.num_bytes,
            chain_bytes=chain_bytes,
            update_bytes=memory.peak,
        )
        return cost, network


def _in_shares(cost: StepCost, network: nn.Module, num_workers: int) -> StepCost:
    """The cost for one of several workers that have shares of weights, average, two moments and gradients."""
    whole = sum(parameter.nbytes for parameter in network.parameters())
    share = share_bytes(network, num_workers)
    rest = cost.state_bytes - 4 * whole
    return replace(
        cost,
        state_bytes=rest + 4 * share,
        # Beside shares of the gradients of the step before. What is exchanged is there twice: in the beginning the
        # weights, and in the end, when these are gone, the gradients.
        chain_bytes=max(cost.chain_bytes - 4 * whole + 5 * share, rest + 5 * share + 2 * whole),
        update_bytes=max(cost.update_bytes - 3 * whole + 4 * share, rest + 5 * share + 2 * whole),
    )


def _forget_numbers(network: nn.Module) -> None:
    """Give every parameter and buffer, in place, a tensor of its shape and layout without numbers."""

    def empty(value: Tensor) -> Tensor:
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype)

    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(empty(value), requires_grad=value.requires_grad))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, empty(value))


def _any_raw(y: Tensor) -> Tensor:
    """Raw outputs (B,) of no network, with a gradient to the images."""
    return y.flatten(1).sum(1)


def _any_output(objective: Objective) -> Callable[[Tensor], Tensor]:
    """Outputs of no network as the objective's forward gives them, of which backward can be asked."""
    is_gradient = objective.needs_gradient
    return lambda y: (y if is_gradient else _any_raw(y)).detach().requires_grad_()


class _Forwards:
    """Counts forwards of a network, and makes the first two of them: of the others each costs what the second one does,
    by its images, and has its memory when that of the one before is free.

    Args:
        original: the forward.
        flop_so_far: floating-point operations counted until now.
        instead: gives the outputs of those that are not made, from their images.
    """

    def __init__(self, original: Any, flop_so_far: Callable[[], int], instead: Callable[[Tensor], Tensor]) -> None:
        self.original, self._flop_so_far, self._instead = original, flop_so_far, instead
        self._flop_before: list[int] = []
        self.sizes: list[int] = []
        """Images of each."""

    def __call__(self, *given: Any) -> Tensor:
        # Of either forward, the images are the one argument of four dimensions.
        (y,) = (one for one in given if isinstance(one, Tensor) and one.dim() == 4)
        self._flop_before.append(self._flop_so_far())
        self.sizes.append(len(y))
        return self.original(*given) if len(self.sizes) <= 2 else self._instead(y)

    @property
    def flop_left_out(self) -> int:
        """Floating-point operations of the forwards that were not made, with what belongs to each."""
        if len(self.sizes) <= 2:
            return 0
        return round((self._flop_before[2] - self._flop_before[1]) / self.sizes[1] * sum(self.sizes[2:]))
