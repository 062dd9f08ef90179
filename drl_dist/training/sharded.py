"""The state in shares: every worker keeps some rows of each weight, of its average and of its moments (FSDP2).

A step gathers the weights once, for the gradients of its chain and for its update alike; what the update adds up over
workers is handed to whoever keeps the rows. Weights as the network has them in between, and checkpoints, are whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.distributed import get_rank, get_world_size, group

from drl_dist.common.errors import UserError
from drl_dist.config.tree import Experiment
from drl_dist.energy.network import EnergyNetwork
from drl_dist.training.ema import Ema, load_averaged, move_towards
from drl_dist.training.objectives import Forward
from drl_dist.training.state import Parts, TrainState

if TYPE_CHECKING:
    # Importing FSDP takes half a second, which only those need to spend who shard.
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


class ShardedForward(nn.Module):
    """The update's forward over weights in shares, as DDP's wrapper is over whole ones.

    It stays the same when the objective changes: weights can be put into shares once.
    """

    def __init__(self, network: EnergyNetwork) -> None:
        super().__init__()
        self.network = network
        # In a tuple, so that its network is no second module of the same weights.
        self._forward: tuple[Forward, ...] = ()

    @property
    def module(self) -> Forward:
        """What is wrapped; asked itself, no gradients are exchanged."""
        return self._forward[0]

    def around(self, forward: Forward) -> ShardedForward:
        """Itself, around the forward of another objective."""
        self._forward = (forward,)
        return self

    def forward(self, y: Tensor, level: Tensor, condition: Tensor | None = None) -> Tensor:
        """As `Forward`."""
        output: Tensor = self.module(y, level, condition)
        return output

    def gather(self) -> None:
        """Have all weights in the network until the next backward that exchanges gradients; a collective call."""
        cast("FSDPModule", self).unshard()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backwards in this context add to the gradients that the next one outside exchanges, and keep the weights."""
        self._exchange(False)
        try:
            yield
        finally:
            self._exchange(True)

    def _exchange(self, is_on: bool) -> None:
        module = cast("FSDPModule", self)
        module.set_requires_gradient_sync(is_on)
        module.set_reshard_after_backward(is_on)


class ShardedEma(Ema):
    """The moving average of this worker's rows."""

    def update(self, network: nn.Module) -> None:
        """See `Ema.update`."""
        values = {name: rows(value) for name, value in network.state_dict().items()}
        move_towards({name: rows(value) for name, value in self.shadow.items()}, values, 1 - self.decay)


@dataclass(kw_only=True)
class ShardedState(TrainState):
    """A state of which each worker of torch.distributed keeps a share; see `sharded`."""

    forward: ShardedForward
    """Of the update, around the network."""
    empty: EnergyNetwork
    """As the network was when it was whole, but for the numbers of its weights."""

    def gather(self) -> None:
        """See `TrainState.gather`."""
        self.forward.gather()

    def gradient_norm(self) -> Tensor:
        """See `TrainState.gradient_norm`; a collective call."""
        return _whole(super().gradient_norm())

    def tensors(self) -> Parts:
        """Every tensor, whole and on the CPU, on the first rank, and no tensor on the others; a collective call."""
        is_first, whole = get_rank() == 0, Parts()
        for part, tensors in super().tensors().items():
            # In one order on all ranks: moments come in that in which they were loaded, which each rank has its own of.
            # One at a time, so that the device never holds all of them.
            gathered = ((name, _whole(tensors[name])) for name in sorted(tensors))
            whole[part] = {name: value.cpu() for name, value in gathered if is_first}
        return whole

    @property
    def num_bytes(self) -> int:
        """Of the tensors of this worker; the weights that a step gathers come on top."""
        return sum(rows(value).nbytes for part in super().tensors().values() for value in part.values())

    def load_tensors(self, parts: Parts, step: int) -> None:
        """See `TrainState.load_tensors`: all ranks have the whole tensors, and keep their own rows."""
        weights = dict(self.network.named_parameters())

        def share(name: str, value: Tensor) -> Tensor:
            owner, _, key = name.partition("/")
            return value if owner not in weights or key == "step" else _share(value, cast("DTensor", weights[owner]))

        parts = {part: {name: share(name, value) for name, value in some.items()} for part, some in parts.items()}
        super().load_tensors(parts, step)

    def ema_network(self) -> EnergyNetwork:
        """See `TrainState.ema_network`; a collective call."""
        network, device = copy.deepcopy(self.empty), self.network.device
        _replace_parameters(network, lambda parameter: torch.empty_like(parameter, device=device))
        return load_averaged(network, {name: _whole(value) for name, value in self.ema.shadow.items()})


def sharded(state: TrainState, experiment: Experiment) -> ShardedState:
    """This state, of which every rank has a copy, in shares; a collective call.

    Args:
        state: its network's weights are replaced by shares, so that it is of no use any more.
        experiment: of the state.

    Raises:
        UserError: a network of the user's has weights that cannot be divided.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    network = state.network
    check_shares(network, experiment)
    # Holds the whole tensors until all shares are there.
    whole, step = state.tensors(), state.step
    # A copy of a network in shares would share FSDP's hooks with it.
    empty = copy.deepcopy(network)
    _replace_parameters(empty, lambda parameter: torch.empty_like(parameter, device="meta"))
    # FSDP takes no weights that lie channels last. Convolutions get theirs as before: `conv_weight` turns them.
    _replace_parameters(network, lambda parameter: parameter.detach().contiguous())
    assert group.WORLD is not None
    mesh = DeviceMesh.from_group(group.WORLD, network.device.type)
    forward = ShardedForward(network)
    fully_shard(forward, mesh=mesh, reshard_after_forward=False)
    optimizer = TrainState.of(network, experiment).optimizer
    ema = ShardedEma(network, state.ema.decay)
    shares = ShardedState(network, ema, optimizer, forward=forward, empty=empty)
    shares.load_tensors(whole, step)
    return shares


def share_bytes(network: nn.Module, num_workers: int) -> int:
    """Bytes of the weights of the worker that has the most, the first one."""
    return sum(-(-len(value) // num_workers) * value[:1].nbytes for value in network.parameters())


def check_shares(network: nn.Module, experiment: Experiment) -> None:
    """Raise `UserError` for a network of the user's with weights that have no rows."""
    for name, value in network.named_parameters():
        if value.dim() == 0:
            raise UserError(
                "config field engine.shard",
                got=f"true with {experiment.model.network}, whose {name} is a single number",
                expected="weights of at least one dimension, whose rows can be divided",
                remedy="give it the shape (1,), or leave engine.shard out",
            )


def _replace_parameters(network: nn.Module, made: Callable[[nn.Parameter], Tensor]) -> None:
    """Give a network other parameters, in place."""
    for module in network.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(made(value), requires_grad=value.requires_grad))


def _share(whole: Tensor, like: DTensor) -> DTensor:
    """This rank's rows of a whole tensor, as those of a weight that is in shares."""
    from torch.distributed.tensor import DTensor

    chunks, rank = whole.chunk(get_world_size()), get_rank()
    mine = (chunks[rank] if rank < len(chunks) else whole[:0]).to(like.device).contiguous()
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(mine, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def rows(value: Tensor) -> Tensor:
    """What this rank has of a tensor, which may be in shares."""
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def _whole(value: Tensor) -> Tensor:
    """The tensor, which all ranks ask for together."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value
