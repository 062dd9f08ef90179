"""Every operation that some work makes: what it reads, what it writes and what it computes, of tensors with or without
numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default
_MADE_EMPTY = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")


class Layout(NamedTuple):
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str
    """Its type, without a number."""

    @classmethod
    def of(cls, value: Tensor) -> Layout:
        """That of a tensor."""
        return cls(tuple(value.shape), tuple(value.stride()), value.dtype, value.device.type)

    @property
    def nbytes(self) -> int:
        """Bytes that are read once: a number that is repeated along an axis lies in memory once."""
        sizes = (size for size, stride in zip(self.shape, self.stride, strict=True) if stride or not size)
        return math.prod(sizes) * self.dtype.itemsize


@dataclass(frozen=True)
class Operation:
    """One call of torch, below autograd."""

    name: str
    """``aten.add.Tensor`` and the like."""
    reads: tuple[Layout, ...]
    """Tensors that it is given, as far as it looks at them."""
    writes: tuple[Layout, ...]
    """Tensors that it returns, those that it changes in place included."""
    flop: int
    """Of products and convolutions, two for each multiply-add; 0 of everything else."""
    is_view: bool
    """It only gives memory that is there another shape, or makes some without filling it."""

    @property
    def nbytes(self) -> int:
        """Bytes that it moves at least: all that it reads and writes, once."""
        return 0 if self.is_view else sum(layout.nbytes for layout in (*self.reads, *self.writes))


def operations_of(work: Callable[[], object]) -> list[Operation]:
    """The operations of some work, in order, those of its autograd included."""
    with _Recorder() as recorder:
        work()
    return recorder.found


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func.namespace == "prim":
            # Questions about a traced tensor, such as its device.
            return output
        reads, flop = args, 0
        if func is _CONVOLUTION_BACKWARD and not args[-1][1]:
            # Without a gradient of the weight the input's numbers are not looked at.
            reads = (args[0], *args[2:])
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            flop = int(count(*args, **kwargs, out_val=output))
        name = str(func)
        self.found.append(
            Operation(
                name,
                _layouts((reads, kwargs)),
                _layouts(output),
                flop,
                is_view(func) or name.split(".")[1] in _MADE_EMPTY,
            )
        )
        return output


def is_view(func: Any) -> bool:
    """Whether an operation of torch gives memory that is there another shape, and does nothing else."""
    returned = [one.alias_info for one in func._schema.returns]
    return bool(returned) and all(alias is not None and not alias.is_write for alias in returned)


def _layouts(values: Any) -> tuple[Layout, ...]:
    tensors: Iterable[Tensor] = (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))
    return tuple(map(Layout.of, tensors))
