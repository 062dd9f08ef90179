"""A small network for points of few coordinates: residual blocks as in Table 5, with dense layers for convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from drl_dist.energy.layers import Layer, sinusoidal_embedding


class PreparedToyBlock(NamedTuple):
    """One residual block: h + dense_2(silu(dense_1(silu(h)) + time bias))."""

    weight_1: Tensor
    bias_1: Tensor
    """(B, width): sum of the layer's bias and the time bias."""
    weight_2: Tensor
    bias_2: Tensor


class PreparedToy(NamedTuple):
    """A network with fixed weights and levels, as a function of the point alone."""

    stem: tuple[Tensor, Tensor]
    blocks: list[PreparedToyBlock]
    head: Tensor
    """(B, width)"""


class ToyBlock(nn.Module):
    """Two dense layers and a time bias between them."""

    def __init__(self, width: int, time_dim: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.dense_1 = Layer((width, width), spectral_norm=None, generator=generator)
        self.time = Layer((width, time_dim), spectral_norm=None, generator=generator)
        self.dense_2 = Layer((width, width), scale=0.01, spectral_norm=None, generator=generator)

    def prepare(self, time: Tensor) -> PreparedToyBlock:
        """time: (B, time_dim), already activated."""
        weight_1, bias_1 = self.dense_1.effective()
        return PreparedToyBlock(weight_1, bias_1 + self.time(time), *self.dense_2.effective())


class ToyMlp(nn.Module):
    """f_theta(y, t), up to the energy scale: points and noise levels -> one raw number each.

    Two things differ from a network for images. The activation of the first layer is a sine, and its initial weights
    have the standard deviation `frequency`: a density of two coordinates can have edges, which a network that starts
    out smooth takes long to learn. And -|y|**2 / 2, the log-density of white noise, is added: sines do not decay, and
    without it exp f would have no integral. SiLU makes the gradient continuous.

    Args:
        num_dims: coordinates of a point.
        width: width of every hidden layer.
        num_res_blocks: N, number of residual blocks.
        time_embedding_dim, time_hidden_dim: widths of the time embedding.
        frequency: frequency of the first layer, in radians per unit of y.
        generator: random generator of the initial weights; by default torch's own.
    """

    def __init__(
        self,
        *,
        num_dims: int = 2,
        width: int,
        num_res_blocks: int,
        time_embedding_dim: int,
        time_hidden_dim: int,
        frequency: float = 2.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.time_embedding_dim = time_embedding_dim
        self.dense_1 = Layer((time_hidden_dim, time_embedding_dim), spectral_norm=None, generator=generator)
        self.dense_2 = Layer((time_hidden_dim, time_hidden_dim), spectral_norm=None, generator=generator)
        self.stem = Layer((width, num_dims), spectral_norm=None, generator=generator)
        with torch.no_grad():
            self.stem.weight.normal_(0.0, frequency, generator=generator)
            self.stem.bias.uniform_(-math.pi, math.pi, generator=generator)
        self.blocks = nn.ModuleList(ToyBlock(width, time_hidden_dim, generator) for _ in range(num_res_blocks))
        self.head = Layer((width, time_hidden_dim), spectral_norm=None, generator=generator)

    def prepare(self, level: Tensor) -> PreparedToy:
        """Everything that does not depend on the point, for noise levels (B,) int64."""
        embedding = sinusoidal_embedding(level, self.time_embedding_dim).to(self.stem.weight.dtype)
        time = functional.silu(self.dense_2(functional.silu(self.dense_1(embedding))))
        blocks = [block.prepare(time) for block in cast(Iterable[ToyBlock], self.blocks)]
        return PreparedToy(self.stem.effective(), blocks, self.head(time))

    def evaluate(self, prepared: PreparedToy, y: Tensor) -> Tensor:
        """Raw output (B,) of points (B, num_dims), given what `prepare` returned for their levels."""
        hidden = functional.linear(y, *prepared.stem).sin()
        for block in prepared.blocks:
            inner = functional.silu(functional.linear(functional.silu(hidden), block.weight_1) + block.bias_1)
            hidden = hidden + functional.linear(inner, block.weight_2, block.bias_2)
        return (functional.silu(hidden) * prepared.head).sum(1) - 0.5 * y.square().sum(1)

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        """Raw output (B,) of points (B, num_dims) at noise levels (B,)."""
        return self.evaluate(self.prepare(level), y)

    def raw_at(self, level: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The network at these levels (B,): y (B, num_dims) -> raw (B,) and its gradient with respect to y.

        Time biases are computed once, here; gradients of weights are never computed.
        """
        with torch.no_grad():
            prepared = self.prepare(level)

        def raw_and_grad(y: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = y.detach().requires_grad_()
                raw = self.evaluate(prepared, leaf)
                (gradient,) = torch.autograd.grad(raw.sum(), leaf)
            return raw.detach(), gradient

        return raw_and_grad
