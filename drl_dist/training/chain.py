"""The chain of K network gradients, which is nine tenths of a training step.

It differentiates a prepared network with respect to the image alone. `GradientEngine` holds the two ways that are
faster than plain autograd: a compiled network, and on CUDA a captured graph of one gradient that every chain step
replays.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from drl_dist.config.tree import EngineConfig
from drl_dist.diffusion.recovery import LogDensityAndGrad, RawAtLevel
from drl_dist.energy.network import EnergyNetwork

Evaluate = Callable[[Any, Tensor], Tensor]
"""As `EnergyNetwork.evaluate`."""
ImageGradient = Callable[[Any, Tensor], Tensor]
"""Of `EnergyNetwork.evaluate`: (B, C, H, W), with gradients to whatever was prepared."""


class GradientEngine:
    """Raw outputs and image gradients of one network, as fast as the device allows.

    Args:
        network: the network; its parameters may change between calls of `raw_at`, unless they are frozen.
        config: precision, compilation and graph capture.
        is_frozen: the parameters never change, so that effective weights are computed once and for all.
    """

    def __init__(self, network: EnergyNetwork, config: EngineConfig, *, is_frozen: bool = False) -> None:
        self.network = network
        self.dtype = torch.bfloat16 if config.precision == "bfloat16" else None
        device = network.device
        if self.dtype is not None and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
            warnings.warn(
                "precision bfloat16 on a CPU without AVX-512: it is emulated, some twenty times slower than float32",
                RuntimeWarning,
                stacklevel=2,
            )
        is_compiled = config.compile == "always" or (config.compile == "auto" and device.type == "cuda")
        self.evaluate: Evaluate = _compiled(network.evaluate) if is_compiled else network.evaluate
        self._gradient = (_compiled_gradient if is_compiled else _eager_gradient)(network.evaluate)
        self.uses_graphs = config.cuda_graph and device.type == "cuda"
        self._is_frozen = is_frozen
        self._weights: Any = None
        self._graphs: dict[tuple[int, ...], _GradientGraph] = {}

    def raw_at(self, level: Tensor, condition: Tensor | None = None) -> LogDensityAndGrad:
        """The network at these levels (B,): y (B, C, H, W) -> raw (B,), and its gradient in y's dtype.

        With labels (B, size) it is that of f(y, t, c), without f(y, t).

        Effective weights and time biases are computed here, once; weight gradients are never formed.
        """
        with torch.no_grad():
            weights = self._weights
            if weights is None:
                # Without their history: a compiled backward computes the gradient of every parameter that it is given.
                weights = pytree.tree_map_only(Tensor, Tensor.detach, self.network.effective_weights(self.dtype))
            prepared = self.network.prepare_given(level, self.dtype, weights, condition)
        if self._is_frozen:
            self._weights = weights
        if not self.uses_graphs:
            return functools.partial(self._raw_and_grad, prepared)
        key = (len(level), *self.network.image_shape)
        if key not in self._graphs:
            self._graphs[key] = _GradientGraph(self._raw_and_grad, prepared, key, self.network.device, self._is_frozen)
        return self._graphs[key].with_weights(prepared)

    def with_labels(self, condition: Tensor | None) -> RawAtLevel:
        """`raw_at` of as many images as there are labels, (B, size)."""
        return self.raw_at if condition is None else functools.partial(self.raw_at, condition=condition)

    def forward(self, y: Tensor, level: Tensor, condition: Tensor | None = None) -> Tensor:
        """Raw output (B,) with gradients to the parameters: the update's forward."""
        return self.evaluate(self.network.prepare_given(level, self.dtype, None, condition), y)

    def gradient(self, y: Tensor, level: Tensor, condition: Tensor | None = None) -> Tensor:
        """The image gradient (B, C, H, W) of raw, itself with gradients to the parameters."""
        return self._gradient(self.network.prepare_given(level, self.dtype, None, condition), y.detach())

    def _raw_and_grad(self, prepared: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            raw = self.evaluate(prepared, leaf)
            (gradient,) = torch.autograd.grad(raw.sum(), leaf)
        return raw.detach(), gradient


class _GradientGraph:
    """A CUDA graph of one gradient; replaying it costs one launch instead of hundreds."""

    def __init__(
        self,
        raw_and_grad: Callable[[Any, Tensor], tuple[Tensor, Tensor]],
        prepared: Any,
        shape: tuple[int, ...],
        device: torch.device,
        is_frozen: bool,
    ) -> None:
        self._is_frozen = is_frozen
        leaves, self._structure = pytree.tree_flatten(prepared)
        self._weights: list[Any] = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._loaded = leaves
        static = pytree.tree_unflatten(self._weights, self._structure)
        self._y = torch.zeros(shape, device=device)
        # Compilation and library set-up must happen outside the capture, on a stream of its own.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                raw_and_grad(static, self._y)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # The outer one for a capture that fails: where its end fails, too, torch leaves its stream the current one.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(self._graph):
            self._raw, self._gradient = raw_and_grad(static, self._y)

    def with_weights(self, prepared: Any) -> LogDensityAndGrad:
        """Load weights and time biases into the captured buffers."""
        leaves = pytree.tree_leaves(prepared)
        for buffer, leaf, loaded in zip(self._weights, leaves, self._loaded, strict=True):
            # A bias is the parameter itself, the same tensor with new numbers after each update.
            is_new = not self._is_frozen or leaf is not loaded
            if isinstance(buffer, Tensor) and is_new:
                buffer.copy_(leaf)
        self._loaded = leaves
        return self._replay

    def _replay(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self._y.copy_(y)
        self._graph.replay()
        # Copies: kernels that carry a gradient in their state keep it beyond the next replay.
        return self._raw.clone(), self._gradient.clone()


@functools.cache
def _compiled(evaluate: Evaluate) -> Evaluate:
    return torch.compile(evaluate, dynamic=False)


def _eager_gradient(evaluate: Evaluate) -> ImageGradient:
    def gradient(prepared: Any, y: Tensor) -> Tensor:
        leaf = y.requires_grad_()
        return torch.autograd.grad(evaluate(prepared, leaf).sum(), leaf, create_graph=True)[0]

    return gradient


@functools.cache
def _compiled_gradient(evaluate: Evaluate) -> ImageGradient:
    # What is compiled can be differentiated once: the first derivative has to be part of it.
    def gradient(prepared: Any, y: Tensor) -> Tensor:
        return torch.func.grad(lambda image: evaluate(prepared, image).sum())(y)

    return torch.compile(gradient, dynamic=False)
