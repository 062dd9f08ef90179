"""A lower bound on the time of a chain of network gradients: its convolutions alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_conv, _conv_backward = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


@dataclass(frozen=True)
class Convolution:
    """One call: its shapes and how it strides."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    settings: tuple[Any, ...]
    """Stride, padding, dilation, whether it is transposed, output padding and groups."""


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Convolution] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is _conv:
            x, weight, _, *settings = args
            self.found.append(Convolution(tuple(x.shape), tuple(weight.shape), tuple(output.shape), tuple(settings)))
        return output


def convolutions_of(forward: Callable[[], object]) -> list[Convolution]:
    """The convolutions of an eager forward pass, in order."""
    with _Recorder() as recorder, torch.no_grad():
        forward()
    return recorder.found


class BareConvolutions:
    """Convolutions, forward and input-gradient, on random tensors of the right shapes.

    Args:
        convolutions: those of one forward pass.
        dtype: of the arithmetic.
        device: of the tensors.
        memory_format: of the tensors; the networks are channels-last.
    """

    def __init__(
        self,
        convolutions: list[Convolution],
        dtype: torch.dtype,
        device: torch.device,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        def random(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, device=device).to(dtype, memory_format=memory_format)

        self._work = [(random(c.x), random(c.weight), random(c.output), c.settings) for c in convolutions]

    @torch.no_grad()
    def run(self, times: int) -> None:
        """Run all convolutions forward, then all input gradients backward, `times` times."""
        for _ in range(times):
            for x, weight, _, settings in self._work:
                _conv(x, weight, None, *settings)
            for x, weight, gradient, settings in reversed(self._work):
                _conv_backward(gradient, x, weight, None, *settings, [True, False, False])
