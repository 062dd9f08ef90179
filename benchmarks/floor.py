"""A lower bound for the time of a chain of network gradients: its convolutions alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from drl_dist.energy.layers import Layer
from drl_dist.energy.wide_resnet import WideResNet


class BareConvolutions:
    """The 3x3 convolutions of a network, forward and input gradient, on random tensors of the right shapes.

    Args:
        network: network whose convolutions are timed.
        batch_size: images per convolution.
        dtype: dtype of the arithmetic.
    """

    def __init__(self, network: WideResNet, batch_size: int, dtype: torch.dtype) -> None:
        self._work: list[tuple[Tensor, Tensor, Tensor]] = []
        size = network.image_shape[-1]
        self._add(network.stem, batch_size, size, dtype)
        for level in network.blocks():
            for block in level:
                for layer in (block.conv_1, block.conv_2, block.skip):
                    if layer is not None:
                        self._add(layer, batch_size, size, dtype)
            size //= 2

    def _add(self, layer: Layer, batch_size: int, size: int, dtype: torch.dtype) -> None:
        out_channels, in_channels = layer.weight.shape[:2]

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=layer.weight.device).to(dtype, memory_format=torch.channels_last)

        self._work.append(
            (
                random(batch_size, in_channels, size, size),
                random(out_channels, in_channels, 3, 3),
                random(batch_size, out_channels, size, size),
            )
        )

    @torch.no_grad()
    def run(self, times: int) -> None:
        """All convolutions forwards, then all input gradients backwards, `times` times over."""
        for _ in range(times):
            for x, weight, _ in self._work:
                functional.conv2d(x, weight, padding=1)
            for x, weight, gradient in reversed(self._work):
                torch.ops.aten.convolution_backward(
                    gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
                )
