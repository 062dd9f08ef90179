"""An energy made of a U-Net, whose gradient is as good a field as a denoiser is.

With s the standard deviation of the noise in y_t, v the variance of the data in it, u = y / sqrt(v + s**2) and
c = s sqrt(v) / sqrt(v + s**2), the log-density is, for a U-Net h,

    inner_product:     f(y, t) = -|y|**2 / (2 (v + s**2)) + c / s**2 <y, h(u, t)>
    squared_distance:  f(y, t) = -|y - D(y, t)|**2 / (2 s**2),   D(y, t) = (1 - s / sqrt(v + s**2)) y + c h(u, t)

At h = 0, where training starts, both are the log-density of white Gaussian data of variance v, and at every level the
inputs and outputs of h are of order one. Every operation can be differentiated twice, for objectives that compare
gradients.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from drl_dist.energy.layers import Layer, conv_weights, recomputed, sinusoidal_embedding
from drl_dist.energy.network import EnergyNetwork

EMBEDDING_SCALE = 4.0
"""Factor on the log signal-to-noise ratio before its embedding, whose highest frequency is 1: the ratios of a ladder
span some 14 nats, in which neighbours must differ."""

Affine = tuple[Tensor, Tensor]
"""Weight and bias of a convolution, a dense layer, or a normalisation."""


class AttentionWeights(NamedTuple):
    """h + out(attention of query, key and value)."""

    norm: Affine
    query_key_value: Affine
    out: Affine


class BlockWeights(NamedTuple):
    """Weights of one residual block, all but those of the time projection in the dtype of convolutions."""

    norm_1: Affine
    conv_1: Affine
    time: Affine
    norm_2: Affine
    conv_2: Affine
    skip: Affine | None
    """Of a 1x1 convolution on the skip, where the width changes."""
    attention: AttentionWeights | None


class EffectiveWeights(NamedTuple):
    """Everything that depends on the weights alone."""

    stem: Affine
    down: list[list[BlockWeights]]
    """Blocks of each resolution level, from the highest resolution down."""
    middle: BlockWeights
    up: list[list[BlockWeights]]
    """Blocks of each resolution level, from the lowest resolution up."""
    norm: Affine
    head: Affine


class PreparedBlock(NamedTuple):
    """One residual block: h + conv_2(silu(norm_2(conv_1(silu(norm_1(h))) + time bias))), then attention."""

    norm_1: Affine
    weight_1: Tensor
    bias_1: Tensor
    """(B, C): sum of the convolution's bias and the time bias."""
    norm_2: Affine
    conv_2: Affine
    skip: Affine | None
    attention: AttentionWeights | None


class Prepared(NamedTuple):
    """A network with fixed weights and levels, as a function of the image alone."""

    input_scale: Tensor
    """(B,) 1 / sqrt(v + s**2)."""
    gain: Tensor
    """(B,) factor on h beside u: sqrt(v) / s in the inner product, c / s in the squared distance."""
    stem: Affine
    down: list[list[PreparedBlock]]
    middle: PreparedBlock
    up: list[list[PreparedBlock]]
    norm: Affine
    head: Affine
    energy: str
    patch_size: int
    recomputes: bool
    """See `EnergyNetwork.recomputes_blocks`."""


class Attention(nn.Module):
    """Self-attention over all pixels, with one head."""

    def __init__(self, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups(width), width)
        self.query_key_value = Layer((3 * width, width, 1, 1), spectral_norm=None, generator=generator)
        self.out = Layer((width, width, 1, 1), scale=0.0, spectral_norm=None, generator=generator)

    def effective(self, dtype: torch.dtype) -> AttentionWeights:
        """The weights in `dtype`."""
        return AttentionWeights(
            _norm_weights(self.norm, dtype),
            conv_weights(self.query_key_value.effective(), dtype),
            conv_weights(self.out.effective(), dtype),
        )


class ResBlock(nn.Module):
    """Two 3x3 convolutions, each behind a normalisation, and a time bias between them."""

    def __init__(
        self, width_in: int, width_out: int, time_dim: int, has_attention: bool, generator: torch.Generator | None
    ) -> None:
        super().__init__()

        def layer(*shape: int, scale: float = 1.0) -> Layer:
            return Layer(shape, scale=scale, spectral_norm=None, generator=generator)

        self.norm_1 = nn.GroupNorm(num_groups(width_in), width_in)
        self.conv_1 = layer(width_out, width_in, 3, 3)
        self.time = layer(width_out, time_dim)
        self.norm_2 = nn.GroupNorm(num_groups(width_out), width_out)
        self.conv_2 = layer(width_out, width_out, 3, 3, scale=0.0)
        self.skip = layer(width_out, width_in, 1, 1) if width_in != width_out else None
        self.attention = Attention(width_out, generator) if has_attention else None

    def effective(self, dtype: torch.dtype) -> BlockWeights:
        """The block's weights, those of convolutions and normalisations in `dtype`."""
        return BlockWeights(
            _norm_weights(self.norm_1, dtype),
            conv_weights(self.conv_1.effective(), dtype),
            self.time.effective(),
            _norm_weights(self.norm_2, dtype),
            conv_weights(self.conv_2.effective(), dtype),
            None if self.skip is None else conv_weights(self.skip.effective(), dtype),
            None if self.attention is None else self.attention.effective(dtype),
        )


class EnergyUNet(EnergyNetwork):
    """f_theta(y, t) in nats: images and noise levels -> one log-density each, up to a constant.

    N blocks at each resolution on the way down, one at the bottom, and N at each resolution on the way up, each of
    which also sees the output of its counterpart.

    Args:
        resolution: height and width of the images, in pixels.
        channels: channels of the images.
        width: width after the first convolution.
        width_multipliers: one per resolution level; 2x2 average pooling, and nearest neighbours, between them.
        num_res_blocks: N.
        time_embedding_dim, time_hidden_dim: widths of the embedding of the log signal-to-noise ratio.
        energy: ``"inner_product"`` or ``"squared_distance"``, as above.
        attention_resolutions: heights, in positions of the network, at which every block ends with self-attention.
        patch_size: pixels along each side of the squares that are one position each for the network, with their pixels
            as channels.
        noise_std: (T,) s_t.
        signal_std: (T,) sqrt(v_t).
        generator: random generator of the initial weights; by default torch's own.
    """

    gradient_uses_all_parameters = True
    noise_std: Tensor
    signal_std: Tensor

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        width: int,
        width_multipliers: tuple[int, ...],
        num_res_blocks: int,
        time_embedding_dim: int,
        time_hidden_dim: int,
        energy: str,
        attention_resolutions: tuple[int, ...],
        noise_std: Tensor,
        signal_std: Tensor,
        patch_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = (channels, resolution, resolution)
        self.energy, self.patch_size = energy, patch_size
        values, side = channels * patch_size**2, resolution // patch_size
        self.time_embedding_dim = time_embedding_dim
        # Constants of the experiment: neither averaged nor kept in checkpoints.
        self.register_buffer("noise_std", noise_std, persistent=False)
        self.register_buffer("signal_std", signal_std, persistent=False)
        self.dense_1 = Layer((time_hidden_dim, time_embedding_dim), spectral_norm=None, generator=generator)
        self.dense_2 = Layer((time_hidden_dim, time_hidden_dim), spectral_norm=None, generator=generator)
        self.stem = Layer((width, values, 3, 3), spectral_norm=None, generator=generator)
        self.down, self.up, passed, current = nn.ModuleList(), nn.ModuleList(), [], width

        def block(width_in: int, level: int) -> ResBlock:
            has_attention = side >> level in attention_resolutions
            return ResBlock(width_in, width * width_multipliers[level], time_hidden_dim, has_attention, generator)

        for level, multiplier in enumerate(width_multipliers):
            blocks = nn.ModuleList()
            for _ in range(num_res_blocks):
                blocks.append(block(current, level))
                current = width * multiplier
                passed.append(current)
            self.down.append(blocks)
        self.middle = block(current, len(width_multipliers) - 1)
        for level, multiplier in reversed(list(enumerate(width_multipliers))):
            blocks = nn.ModuleList()
            for _ in range(num_res_blocks):
                blocks.append(block(current + passed.pop(), level))
                current = width * multiplier
            self.up.append(blocks)
        self.norm = nn.GroupNorm(num_groups(current), current)
        self.head = Layer((values, current, 3, 3), scale=0.0, spectral_norm=None, generator=generator)

    def effective_weights(self, dtype: torch.dtype | None = None) -> EffectiveWeights:
        """See `EnergyNetwork.effective_weights`."""
        dtype = dtype or self.dtype
        down, up = (
            [[block.effective(dtype) for block in cast(Iterable[ResBlock], blocks)] for blocks in side]
            for side in (self.down, self.up)
        )
        return EffectiveWeights(
            conv_weights(self.stem.effective(), dtype),
            down,
            self.middle.effective(dtype),
            up,
            _norm_weights(self.norm, dtype),
            conv_weights(self.head.effective(), dtype),
        )

    def prepare(
        self,
        level: Tensor,
        dtype: torch.dtype | None = None,
        weights: EffectiveWeights | None = None,
        condition: Tensor | None = None,
    ) -> Prepared:
        """See `EnergyNetwork.prepare`."""
        weights = weights or self.effective_weights(dtype)
        noise, signal = self.noise_std[level], self.signal_std[level]
        log_snr = 2 * (signal / noise).log()
        embedding = sinusoidal_embedding(EMBEDDING_SCALE * log_snr, self.time_embedding_dim).to(self.dtype)
        time = self.with_condition(self.dense_2(functional.silu(self.dense_1(embedding))), condition)
        time = functional.silu(time)
        total = torch.hypot(noise, signal)
        down, up = (
            [[_prepare_block(block, time) for block in blocks] for blocks in side]
            for side in (weights.down, weights.up)
        )
        return Prepared(
            input_scale=1 / total,
            gain=signal / (noise if self.energy == "inner_product" else total),
            stem=weights.stem,
            down=down,
            middle=_prepare_block(weights.middle, time),
            up=up,
            norm=weights.norm,
            head=weights.head,
            energy=self.energy,
            patch_size=self.patch_size,
            recomputes=self.recomputes_blocks and torch.is_grad_enabled(),
        )

    @staticmethod
    def evaluate(prepared: Prepared, y: Tensor) -> Tensor:
        """See `EnergyNetwork.evaluate`."""
        u = y.to(prepared.input_scale.dtype) * prepared.input_scale[:, None, None, None]
        # bfloat16 has too few bits for a sum over a whole image.
        h = apply_unet(prepared, u).to(u.dtype) * prepared.gain[:, None, None, None]
        if prepared.energy == "inner_product":
            return (u * (h - 0.5 * u)).flatten(1).sum(1)
        return -0.5 * (u - h).square().flatten(1).sum(1)


def apply_unet(prepared: Prepared, u: Tensor) -> Tensor:
    """h(u, t), (B, C, H, W) in the dtype of convolutions, of scaled images (B, C, H, W)."""
    apply = partial(recomputed, _apply) if prepared.recomputes else _apply
    weight, bias = prepared.stem
    patches = functional.pixel_unshuffle(u, prepared.patch_size) if prepared.patch_size > 1 else u
    patches = patches.to(dtype=weight.dtype, memory_format=torch.channels_last)
    hidden = functional.conv2d(patches, weight, bias, padding=1)
    passed: list[Tensor] = []
    for index, blocks in enumerate(prepared.down):
        if index > 0:
            hidden = functional.avg_pool2d(hidden, 2)
        for block in blocks:
            hidden = apply(block, hidden)
            passed.append(hidden)
    hidden = apply(prepared.middle, hidden)
    for index, blocks in enumerate(prepared.up):
        if index > 0:
            hidden = enlarged(hidden)
        for block in blocks:
            hidden = apply(block, hidden, passed.pop())
    patches = functional.conv2d(functional.silu(_normalise(hidden, prepared.norm)), *prepared.head, padding=1)
    return functional.pixel_shuffle(patches, prepared.patch_size) if prepared.patch_size > 1 else patches


def enlarged(hidden: Tensor) -> Tensor:
    """Nearest neighbours: (B, C, 2H, 2W) of (B, C, H, W)."""
    if not torch.compiler.is_compiling():
        return functional.interpolate(hidden, scale_factor=2.0, mode="nearest")
    # The compiler's gradient of that adds numbers atomically: on a GPU in another order each time, and in float32.
    count, width, rows, columns = hidden.shape
    pixels = hidden.permute(0, 2, 3, 1)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
    return pixels.reshape(count, 2 * rows, 2 * columns, width).permute(0, 3, 1, 2)


def num_groups(width: int) -> int:
    """Groups of a normalisation over `width` channels: at most 32, if possible of four channels or more each."""
    return next(count for count in range(max(1, min(32, width // 4)), 0, -1) if width % count == 0)


def _prepare_block(block: BlockWeights, time: Tensor) -> PreparedBlock:
    """A block at the levels of the activated time embedding, (B, time_dim)."""
    weight_1, bias_1 = block.conv_1
    bias = (bias_1 + functional.linear(time, *block.time)).to(weight_1.dtype)
    return PreparedBlock(block.norm_1, weight_1, bias, block.norm_2, block.conv_2, block.skip, block.attention)


def _apply(block: PreparedBlock, hidden: Tensor, passed: Tensor | None = None) -> Tensor:
    if passed is not None:
        hidden = torch.cat([hidden, passed], dim=1)
    inner = functional.conv2d(functional.silu(_normalise(hidden, block.norm_1)), block.weight_1, padding=1)
    inner = inner + block.bias_1[:, :, None, None]
    inner = functional.conv2d(functional.silu(_normalise(inner, block.norm_2)), *block.conv_2, padding=1)
    if block.skip is not None:
        hidden = functional.conv2d(hidden, *block.skip)
    hidden = hidden + inner
    return hidden if block.attention is None else _attend(block.attention, hidden)


def _attend(attention: AttentionWeights, hidden: Tensor) -> Tensor:
    """Written out, because the fused attentions cannot be differentiated twice."""
    width = hidden.shape[1]
    packed = functional.conv2d(_normalise(hidden, attention.norm), *attention.query_key_value)
    query, key, value = packed.flatten(2).chunk(3, dim=1)
    weights = torch.softmax(query.mT @ key * width**-0.5, dim=2)
    attended = (value @ weights.mT).reshape(hidden.shape)
    return hidden + functional.conv2d(attended, *attention.out)


def _normalise(hidden: Tensor, affine: Affine) -> Tensor:
    return functional.group_norm(hidden, num_groups(hidden.shape[1]), *affine)


def _norm_weights(norm: nn.GroupNorm, dtype: torch.dtype) -> Affine:
    return norm.weight.to(dtype), norm.bias.to(dtype)
