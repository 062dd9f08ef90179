"""A U-Net h(y, log signal-to-noise ratio) -> like y, for the baseline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from drl_dist.config.tree import ModelConfig
from drl_dist.energy.layers import sinusoidal_embedding

_EMBEDDING_SCALE = 4.0
"""Factor on the log ratio before its embedding, whose highest frequency is 1: the ratios span some 20 nats."""


class UNet(nn.Module):
    """N blocks at each resolution on the way down, one at the bottom, N at each resolution on the way up, each of which
    also sees the output of its counterpart. It begins as the function that is 0.

    Args:
        model: sizes; what else it says is for energies.
        seed: of the initial weights.
    """

    def __init__(self, model: ModelConfig, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(model)

    def _build(self, model: ModelConfig) -> None:
        hidden, count = model.time_hidden_dim, model.num_res_blocks
        self.embedding_dim = model.time_embedding_dim
        self.embed = nn.Sequential(
            nn.Linear(model.time_embedding_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.stem = nn.Conv2d(model.channels, model.width, 3, padding=1)
        widths = [model.width * multiplier for multiplier in model.width_multipliers]
        current, passed = model.width, list[int]()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for width in widths:
            blocks = nn.ModuleList()
            for _ in range(count):
                blocks.append(_Block(current, width, hidden))
                current = width
                passed.append(width)
            self.down.append(blocks)
        self.middle = _Block(current, current, hidden)
        for width in reversed(widths):
            blocks = nn.ModuleList()
            for _ in range(count):
                blocks.append(_Block(current + passed.pop(), width, hidden))
                current = width
            self.up.append(blocks)
        self.norm = _norm(current)
        self.head = _zero(nn.Conv2d(current, model.channels, 3, padding=1))

    def forward(self, y: Tensor, log_snr: Tensor) -> Tensor:
        """Images (B, C, H, W) and their log signal-to-noise ratios (B,) -> (B, C, H, W)."""
        time = self.embed(sinusoidal_embedding(_EMBEDDING_SCALE * log_snr, self.embedding_dim))
        hidden, passed = self.stem(y), list[Tensor]()
        for index, blocks in enumerate(self.down):
            hidden = functional.avg_pool2d(hidden, 2) if index else hidden
            for block in cast(Iterable[_Block], blocks):
                hidden = block(hidden, time)
                passed.append(hidden)
        hidden = self.middle(hidden, time)
        for index, blocks in enumerate(self.up):
            hidden = functional.interpolate(hidden, scale_factor=2.0, mode="nearest") if index else hidden
            for block in cast(Iterable[_Block], blocks):
                hidden = block(torch.cat([hidden, passed.pop()], dim=1), time)
        return self.head(functional.silu(self.norm(hidden)))


class _Block(nn.Module):
    """skip(h) + conv_2(silu(norm_2(conv_1(silu(norm_1(h))) + time bias)))."""

    def __init__(self, width_in: int, width_out: int, time_dim: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = _norm(width_in), _norm(width_out)
        self.conv_1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.conv_2 = _zero(nn.Conv2d(width_out, width_out, 3, padding=1))
        self.time = nn.Linear(time_dim, width_out)
        self.skip = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        inner = self.conv_1(functional.silu(self.norm_1(hidden))) + self.time(time)[:, :, None, None]
        return self.skip(hidden) + self.conv_2(functional.silu(self.norm_2(inner)))


def _norm(width: int) -> nn.GroupNorm:
    groups = next(count for count in range(max(1, min(32, width // 4)), 0, -1) if width % count == 0)
    return nn.GroupNorm(groups, width)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
