"""The wide ResNet of Table 5, split into a part that depends on weights and levels and a part that depends on images.

``prepare`` computes effective weights and time biases; ``evaluate`` applies them to images. A training step prepares
once for all K chain gradients, and once more, with gradients, for its update.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from drl_dist.energy.layers import Layer, conv_weight, conv_weights, recomputed, sinusoidal_embedding
from drl_dist.energy.network import EnergyNetwork


class PreparedBlock(NamedTuple):
    """One residual block: h + conv_2(act(conv_1(act(h)) + time bias))."""

    weight_1: Tensor
    bias_1: Tensor
    """(B, C): sum of the convolution's bias and the time bias."""
    weight_2: Tensor
    bias_2: Tensor
    skip: tuple[Tensor, Tensor] | None
    """Weight and bias of a convolution on the skip, where the width changes."""


class BlockWeights(NamedTuple):
    """Effective weights and biases of one residual block, those of convolutions in the dtype of convolutions."""

    conv_1: tuple[Tensor, Tensor]
    time: tuple[Tensor, Tensor]
    conv_2: tuple[Tensor, Tensor]
    skip: tuple[Tensor, Tensor] | None


class EffectiveWeights(NamedTuple):
    """Everything that depends on the weights alone: spectrally normalised weights, times their learned scales."""

    stem: tuple[Tensor, Tensor]
    blocks: list[list[BlockWeights]]
    """Blocks of each resolution level."""


class Prepared(NamedTuple):
    """A network with fixed weights and levels, as a function of the image alone."""

    stem: tuple[Tensor, Tensor]
    blocks: list[list[PreparedBlock]]
    """Blocks of each resolution level."""
    head: Tensor
    """(B, C): raw = <head, spatial sum of the features> + head_bias."""
    head_bias: Tensor
    """(B,) float32."""
    activation: str
    recomputes: bool
    """See `EnergyNetwork.recomputes_blocks`."""


class ResBlock(nn.Module):
    """Two 3x3 convolutions and a time bias between them."""

    def __init__(
        self, width_in: int, width_out: int, time_dim: int, norm: bool, rule: str, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        unit, cap = ("unit", "cap") if norm else (None, None)
        layer = partial(Layer, norm_rule=rule, generator=generator)
        self.conv_1 = layer((width_out, width_in, 3, 3), spectral_norm=unit)
        self.time = layer((width_out, time_dim), spectral_norm=unit)
        self.conv_2 = layer((width_out, width_out, 3, 3), scale=1e-10, spectral_norm=cap, learned_scale=True)
        self.skip = layer((width_out, width_in, 3, 3), spectral_norm=unit) if width_in != width_out else None

    def effective(self, dtype: torch.dtype) -> BlockWeights:
        """The block's weights, those of convolutions in `dtype`."""
        weight_1, bias_1 = self.conv_1.effective()
        return BlockWeights(
            (conv_weight(weight_1, dtype), bias_1),
            self.time.effective(),
            conv_weights(self.conv_2.effective(), dtype),
            None if self.skip is None else conv_weights(self.skip.effective(), dtype),
        )


class WideResNet(EnergyNetwork):
    """f_theta(y, t), up to the energy scale: images and noise levels -> one raw number each.

    Args:
        resolution: height and width of the images, in pixels; used to check input.
        channels: channels of the images.
        width: width after the first convolution.
        width_multipliers: one per resolution level; 2x2 average pooling between them.
        num_res_blocks: N, number of residual blocks per resolution level.
        time_embedding_dim, time_hidden_dim: widths of the time embedding.
        activation: ``"leaky_relu"`` (slope 0.2) or ``"silu"``.
        spectral_norm: whether convolutions and time projections are normalised.
        norm_rule: ``"released"`` normalises the two dense layers of the time embedding too, ``"own"`` does not; and
            how norms are estimated, see `Layer`.
        head: ``"inner_product"`` with a vector computed from the time embedding, or ``"dense"``.
        generator: random generator of the initial weights; by default torch's own.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        width: int,
        width_multipliers: tuple[int, ...],
        num_res_blocks: int,
        time_embedding_dim: int = 128,
        time_hidden_dim: int = 512,
        activation: str = "leaky_relu",
        spectral_norm: bool = True,
        norm_rule: str = "own",
        head: str = "inner_product",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = (channels, resolution, resolution)
        self.activation = activation
        self.head_kind = head
        self.time_embedding_dim = time_embedding_dim
        norm = "unit" if spectral_norm else None
        time_norm = norm if norm_rule == "released" else None
        layer = partial(Layer, norm_rule=norm_rule, generator=generator)
        self.dense_1 = layer((time_hidden_dim, time_embedding_dim), spectral_norm=time_norm)
        self.dense_2 = layer((time_hidden_dim, time_hidden_dim), spectral_norm=time_norm)
        self.stem = layer((width, channels, 3, 3), spectral_norm=norm)
        levels: list[nn.ModuleList] = []
        current = width
        for multiplier in width_multipliers:
            blocks: list[ResBlock] = []
            for _ in range(num_res_blocks):
                blocks.append(
                    ResBlock(current, width * multiplier, time_hidden_dim, spectral_norm, norm_rule, generator)
                )
                current = width * multiplier
            levels.append(nn.ModuleList(blocks))
        self.levels = nn.ModuleList(levels)
        head_shape = (current, time_hidden_dim) if head == "inner_product" else (1, current)
        self.head = Layer(head_shape, spectral_norm=None, generator=generator)

    def blocks(self) -> list[list[ResBlock]]:
        """The residual blocks of each resolution level."""
        return [list(cast(Iterable[ResBlock], level)) for level in self.levels]

    def effective_weights(self, dtype: torch.dtype | None = None) -> EffectiveWeights:
        """See `EnergyNetwork.effective_weights`."""
        dtype = dtype or self.dtype
        blocks = [[block.effective(dtype) for block in level_blocks] for level_blocks in self.blocks()]
        return EffectiveWeights(conv_weights(self.stem.effective(), dtype), blocks)

    def prepare(
        self,
        level: Tensor,
        dtype: torch.dtype | None = None,
        weights: EffectiveWeights | None = None,
        condition: Tensor | None = None,
    ) -> Prepared:
        """See `EnergyNetwork.prepare`."""
        own = self.dtype
        weights = weights or self.effective_weights(dtype)
        embedding = sinusoidal_embedding(level, self.time_embedding_dim).to(own)
        time = self.dense_2(_activate(self.dense_1(embedding), self.activation))
        time = _activate(self.with_condition(time, condition), self.activation)
        if self.head_kind == "inner_product":
            head, head_bias = self.head(time), torch.zeros(len(level), device=level.device, dtype=own)
        else:
            weight, bias = self.head.effective()
            head, head_bias = weight.expand(len(level), -1), bias.expand(len(level))
        blocks = [[_prepare_block(block, time) for block in level_blocks] for level_blocks in weights.blocks]
        recomputes = self.recomputes_blocks and torch.is_grad_enabled()
        return Prepared(weights.stem, blocks, head, head_bias, self.activation, recomputes)

    @staticmethod
    def evaluate(prepared: Prepared, y: Tensor) -> Tensor:
        """See `EnergyNetwork.evaluate`."""
        (weight, bias), activation = prepared.stem, prepared.activation
        hidden = functional.conv2d(y.to(dtype=weight.dtype, memory_format=torch.channels_last), weight, bias, padding=1)
        for index, blocks in enumerate(prepared.blocks):
            if index > 0:
                hidden = functional.avg_pool2d(hidden, 2)
            for block in blocks:
                if prepared.recomputes:
                    hidden = recomputed(_apply, block, hidden, activation)
                else:
                    hidden = _apply(block, hidden, activation)
        # bfloat16 has too few bits for a sum over a whole image.
        features = functional.relu(hidden).sum((2, 3), dtype=prepared.head.dtype)
        return (features * prepared.head).sum(1) + prepared.head_bias


def _prepare_block(block: BlockWeights, time: Tensor) -> PreparedBlock:
    """A block at the levels of the activated time embedding, (B, time_dim)."""
    weight_1, bias_1 = block.conv_1
    bias = (bias_1 + functional.linear(time, *block.time)).to(weight_1.dtype)
    return PreparedBlock(weight_1, bias, *block.conv_2, block.skip)


def _apply(block: PreparedBlock, hidden: Tensor, activation: str) -> Tensor:
    inner = functional.conv2d(_activate(hidden, activation), block.weight_1, padding=1)
    # In place, because the convolution's own output is not needed again.
    inner = _activate_(inner.add_(block.bias_1[:, :, None, None]), activation)
    inner = functional.conv2d(inner, block.weight_2, block.bias_2, padding=1)
    if block.skip is not None:
        hidden = functional.conv2d(hidden, block.skip[0], block.skip[1], padding=1)
    return inner.add_(hidden)


def _activate(x: Tensor, kind: str) -> Tensor:
    return functional.silu(x) if kind == "silu" else functional.leaky_relu(x, 0.2)


def _activate_(x: Tensor, kind: str) -> Tensor:
    # The gradient of the leaky ReLU follows from its value; that of SiLU needs its argument, so no in-place operation.
    return functional.silu(x) if kind == "silu" else functional.leaky_relu(x, 0.2, inplace=True)
