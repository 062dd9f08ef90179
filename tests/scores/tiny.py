"""A feature network small enough for tests, as a user would bring one, and options as a command line has them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


class TinyNetwork(nn.Module):
    """uint8 (B, C, H, W) -> features (B, 6) and logits (B, 4)."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        self.channels = channels
        generator = torch.Generator().manual_seed(seed)
        self.project = nn.Parameter(torch.randn(channels * 16, 6, generator=generator) / 4)
        self.classify = nn.Parameter(torch.randn(6, 4, generator=generator))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = nn.functional.adaptive_avg_pool2d(images.float() / 255, (4, 4)).flatten(1)
        features = pooled @ self.project
        return features, features @ self.classify


class NoLogits(nn.Module):
    """uint8 (B, 3, H, W) -> features (B, 3)."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


def script(module: nn.Module, path: Path) -> str:
    """The option that names the module, which is written to `path`."""
    torch.jit.script(module).save(str(path))
    return f"torchscript:{path}"


def tiny_network(path: Path, *, channels: int = 3, seed: int = 0) -> str:
    """The option that names a `TinyNetwork` below `path`."""
    return script(TinyNetwork(channels, seed), path / f"tiny-{channels}-{seed}.pt")


def as_arguments(options: object) -> list[str]:
    """The command line that gives these options."""
    return [
        f"--{name.replace('_', '-')}={value}" for name, value in vars(options).items() if value not in (None, False)
    ]
