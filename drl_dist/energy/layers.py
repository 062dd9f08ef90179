"""Layers with initialisation and spectral norm, whose effective weights are computed separately from their use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def fan_average_uniform_(weight: Tensor, scale: float, generator: torch.Generator | None) -> None:
    """Variance scaling over the mean of fan-in and fan-out, uniform, in place."""
    receptive = math.prod(weight.shape[2:])
    fan_average = receptive * (weight.shape[0] + weight.shape[1]) / 2
    bound = math.sqrt(3 * scale / fan_average)
    with torch.no_grad():
        weight.uniform_(-bound, bound, generator=generator)


class Layer(nn.Module):
    """A dense or convolution layer whose *effective* weight is computed separately from its use.

    A training step uses one weight in K chain gradients and one update, so the spectral norm is computed once and the
    result passed on, instead of being computed in every forward pass.

    Args:
        shape: shape of the weight, (out, in) or (out, in, 3, 3).
        scale: scale of the initialisation.
        spectral_norm: ``"unit"`` divides the weight by its largest singular value; ``"cap"`` does so only if that value
            is above 1 (for layers initialised at zero); ``None`` leaves the weight unchanged.
        norm_rule: how the largest singular value is estimated from u, for weights W of shape (out, in): ``"released"``
            |W v| with v = W^T u / |W^T u|, as in a forward pass of the released code, half a power iteration further
            than ``"own"``, which is |W^T u|.
        learned_scale: multiply weight and bias by one learned factor per output channel.
        generator: random generator of the initial values.
    """

    u: Tensor | None
    channel_scale: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        scale: float = 1.0,
        spectral_norm: str | None = "unit",
        norm_rule: str = "own",
        learned_scale: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.spectral_norm, self.norm_rule = spectral_norm, norm_rule
        fan_average_uniform_(self.weight, scale, generator)
        self.channel_scale = nn.Parameter(torch.ones(shape[0])) if learned_scale else None
        if spectral_norm is None:
            self.register_buffer("u", None)
        else:
            self.register_buffer("u", functional.normalize(torch.randn(shape[0], generator=generator), dim=0))
            # So that the first steps do not use far too small a singular value; a layer of shapes alone has none.
            for _ in range(0 if self.weight.is_meta else 15):
                self.advance_power_iteration()

    @torch.no_grad()
    def advance_power_iteration(self) -> None:
        """One power iteration of u, the left singular vector, (out,)."""
        if self.u is not None:
            matrix = self.weight.flatten(1)
            v = functional.normalize(matrix.mT @ self.u, dim=0)
            self.u.copy_(functional.normalize(matrix @ v, dim=0))

    def effective(self) -> tuple[Tensor, Tensor]:
        """The weight and bias that the layer applies; gradients flow through the norm, but not through u and v."""
        weight, bias = self.weight, self.bias
        if self.u is not None:
            matrix, u = weight.flatten(1), self.u
            v = functional.normalize(matrix.detach().mT @ u, dim=0)
            if self.norm_rule == "released":
                u = functional.normalize(matrix.detach() @ v, dim=0)
            norm = u @ (matrix @ v)
            weight = weight / (norm.clamp(min=1.0) if self.spectral_norm == "cap" else norm)
        if self.channel_scale is not None:
            weight = weight * self.channel_scale.reshape((-1,) + (1,) * (weight.dim() - 1))
            bias = bias * self.channel_scale
        return weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """A dense layer applied to (B, in)."""
        weight, bias = self.effective()
        return functional.linear(x, weight, bias)


def conv_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (out, in, H, W) of a convolution, as convolutions take it."""
    return weight.to(dtype=dtype, memory_format=torch.channels_last)


def conv_weights(effective: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight and bias of a convolution, as convolutions take them."""
    weight, bias = effective
    return conv_weight(weight, dtype), bias.to(dtype)


def sinusoidal_embedding(level: Tensor, dim: int) -> Tensor:
    """Transformer position embedding of the noise level.

    Args:
        level: (B,) int64, or real numbers.
        dim: even.

    Returns:
        (B, dim) float32: sines, then cosines, of frequencies from 1 down to 1/10000.
    """
    half = dim // 2
    frequency = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, dtype=torch.float32, device=level.device))
    angle = level.float()[:, None] * frequency[None]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """A function's result, whose backward computes the function again instead of keeping what it made: activation
    checkpointing. Numbers and gradients are the same, bit for bit where the same operations give the same bits.

    Args:
        function: deterministic, and changes nothing that it is given.
        arguments: of it; tensors among them, and in nested tuples, are kept.
    """
    # Nothing here is random, so no state of a generator has to be kept.
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
