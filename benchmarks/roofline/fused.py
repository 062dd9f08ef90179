"""What torch's compiler makes of a function for an H100, without one: its kernels after fusion, counted before code is
written for them, which needs no Triton, or whatever else is taken of a graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Generic, TypeVar
from unittest import mock

import torch
from torch import Tensor
from torch._inductor import compile_fx, scheduler
from torch._inductor import config as inductor
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import FallbackKernel, MultiOutput, Scatter
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.scheduler import BaseSchedulerNode, ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule

_H100 = SimpleNamespace(name="H100", major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30)
"""What the compiler asks torch of a device."""
_HOPPER = DeviceProperties(
    type="cuda",
    index=0,
    multi_processor_count=132,
    cc=90,
    major=9,
    regs_per_multiprocessor=2**16,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
)
"""The same in the compiler's own words."""
_PRODUCTS = ("convolution", "mm")
Taken = TypeVar("Taken")


@dataclass(frozen=True)
class Kernel:
    """One kernel of a compiled graph."""

    library: str | None
    """What a library makes, such as ``aten.convolution``; None of a kernel that the compiler writes."""
    nbytes: int
    """Bytes that it reads and writes at least; of a library's, as far as the compiler knows."""
    is_atomic: bool = False
    """Whether it adds up numbers in an order that differs from run to run."""

    @property
    def is_product(self) -> bool:
        """Whether it is a convolution or a product of matrices."""
        return self.library is not None and any(name in self.library for name in _PRODUCTS)


def fused(work: Callable[[Callable[..., Any]], object]) -> list[Kernel]:
    """The kernels of compiled functions of tensors without numbers, those of their gradients behind them.

    Args:
        work: is given what is to be used in place of `torch.compile`, and calls what that returns once.
    """
    return [kernel for kernels in graphs(work, _fused_kernels) for kernel in kernels]


def graphs(work: Callable[[Callable[..., Any]], object], take: Callable[[GraphLowering], Taken]) -> list[Taken]:
    """What is taken of each graph that the compiler would write code for.

    Args:
        work: as of `fused`.
        take: called while the compiler finds an H100, with a graph that its scheduler has not seen yet.
    """
    backend = _Backend(take)
    torch._dynamo.reset()
    work(lambda function: torch.compile(function, backend=backend, dynamic=False, fullgraph=True))
    return backend.taken


class _Backend(Generic[Taken]):
    """A backend of `torch.compile` that takes something of each graph, and runs the graph uncompiled."""

    def __init__(self, take: Callable[[GraphLowering], Taken]) -> None:
        self._take = take
        self.taken: list[Taken] = []

    def __call__(self, module: GraphModule, inputs: Sequence[Any]) -> Any:
        return compile_fx.compile_fx(module, inputs, inner_compile=self._compile)

    def _compile(self, module: GraphModule, inputs: Sequence[Any], **settings: Any) -> Any:
        eager = copy.deepcopy(module)

        def lowered(graph: GraphLowering) -> None:
            self.taken.append(self._take(graph))
            raise _TakenError

        with _hopper(lowered), suppress(_TakenError):
            compile_fx.compile_fx_inner(_moved(module), [_on_cuda(one) for one in inputs], **settings)

        def run(arguments: list[Tensor]) -> Any:
            return eager(*arguments)

        run._boxed_call = True  # pyright: ignore[reportFunctionMemberAccess]
        return run


class _TakenError(BaseException):
    """The end of a compilation of which nothing is to run; past whoever wraps errors."""


def _fused_kernels(graph: GraphLowering) -> list[Kernel]:
    """What the graph's scheduler has fused."""
    graph._update_scheduler()
    return [kernel for node in graph.scheduler.nodes for kernel in _kernels(node)]


def _kernels(node: BaseSchedulerNode) -> list[Kernel]:
    if isinstance(node, NopKernelSchedulerNode):
        return []
    size = node.get_read_write_buffers_sizes()
    if not isinstance(node, ExternKernelSchedulerNode):
        return [
            Kernel(None, size, any(isinstance(getattr(one.node, "data", None), Scatter) for one in node.get_nodes()))
        ]
    made: Any = node.node
    if isinstance(made, MultiOutput):
        # One result of a kernel that was counted.
        return []
    return [Kernel(str(made.op_overload if isinstance(made, FallbackKernel) else made.python_kernel_name), size)]


@contextmanager
def _hopper(lowered: Callable[[GraphLowering], None]) -> Iterator[None]:
    """The compiler finds an H100; `lowered` is in place of a graph's translation, which would use it."""
    patches = [
        mock.patch.object(GraphLowering, "compile_to_module", lowered),
        mock.patch.object(torch.cuda, "get_device_properties", lambda *_: _H100),
        mock.patch.object(torch.cuda, "get_device_capability", lambda *_: (_H100.major, _H100.minor)),
        mock.patch.object(torch.cuda, "current_device", lambda: 0),
        mock.patch.object(DeviceProperties, "create", lambda _: _HOPPER),
        mock.patch.object(compile_fx, "_check_triton_bf16_support", lambda _: None),
        mock.patch.object(scheduler, "has_triton", lambda: True),
        # cuDNN's choice for weights of this layout, which torch without cuDNN does not know.
        mock.patch.object(torch._C, "_conv_determine_backend_memory_format", lambda *_: torch.channels_last),
        inductor.patch(force_disable_caches=True),
    ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _on_cuda(value: Any) -> Any:
    if not isinstance(value, FakeTensor):
        return value
    with value.fake_mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda:0")


def _moved(module: GraphModule) -> GraphModule:
    """The graph with its constants on the device."""
    for node in module.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda:0")}
    return module
