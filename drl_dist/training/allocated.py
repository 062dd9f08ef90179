"""Bytes that operations on tensors allocate, of tensors with or without numbers."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# On a device one kernel with one result; of traced tensors several operations, whose results it never allocates.
_ONE_KERNEL = frozenset({"SiluBackward0"})


class AllocatedBytes(TorchDispatchMode):
    """Bytes of the tensors that operations make while this mode is on, until nothing refers to them any more.

    They are those that autograd would allocate without this mode, as far as is known here (`python -m
    benchmarks.memory` compares).
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._last: tuple[int, weakref.ref[Tensor]] | None = None
        self.current = self.peak = 0
        """Bytes held now, and the most that were held since `begin`."""

    def begin(self) -> None:
        """Look for the peak of what follows."""
        self.peak = self.current

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled():
            self._see_backward(func, args, output)
        pytree.tree_map_only(Tensor, self._see, output)
        return output

    def _see_backward(self, func: Any, args: Any, output: Any) -> None:
        """What autograd does in less memory where no mode is on."""
        if func is torch.ops.aten.add.Tensor:
            # The gradients of two uses of a tensor are summed in place.
            self._forget(args[0])
        node: Any = torch._C._current_autograd_node()
        if node is None or node.name() not in _ONE_KERNEL or not isinstance(output, Tensor):
            return
        number = node._sequence_nr()
        if self._last is not None and self._last[0] == number and (before := self._last[1]()) is not None:
            self._forget(before)
        self._last = number, weakref.ref(output)

    def _see(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = id(storage)
        if key in self._held:
            return
        size = storage.nbytes()
        self._held[key] = weakref.ref(storage, lambda _: self._release(key)), size
        self.current += size
        self.peak = max(self.peak, self.current)

    def _forget(self, value: Tensor) -> None:
        """Count a tensor as released while something still refers to it."""
        key = id(value.untyped_storage())
        if key in self._held:
            reference, size = self._held[key]
            self._held[key] = reference, 0
            self.current -= size

    def _release(self, key: int) -> None:
        self.current -= self._held.pop(key)[1]
