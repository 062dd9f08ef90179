"""Pixels in exact agreement with what was observed of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_BISECTIONS = 80


def block_means(images: Tensor, size: int) -> Tensor:
    """uint8 images (B, C, H, W) at 1/size of their resolution: the mean of every block, rounded to uint8."""
    return functional.avg_pool2d(images.double(), size).round().to(torch.uint8)


def with_block_means(images: Tensor, means: Tensor, size: int) -> Tensor:
    """The uint8 images nearest to these whose block means are exactly the given ones.

    Clipping and rounding each pixel by itself would change the means. Among real numbers in [0, 255], the nearest of a
    given sum are the pixels of the block, shifted alike and clipped; of their fractions the largest are rounded up.

    Args:
        images: (B, C, H, W) of about [-1, 1].
        means: (B, C, H / size, W / size) uint8.
        size: height and width of a block.
    """
    batch, channels, height, width = images.shape
    blocks = functional.unfold((images.double().reshape(-1, 1, height, width) + 1) * 127.5, size, stride=size)
    # (B * C, size**2, number of blocks)
    wanted = means.double().reshape(batch * channels, 1, -1) * size**2
    low, high = -blocks.amax(1, keepdim=True), 255 - blocks.amin(1, keepdim=True)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_low = (blocks + middle).clamp(0, 255).sum(1, keepdim=True) <= wanted
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    # Not more than wanted: what is missing after rounding down is less than one for each fraction there is.
    shifted = (blocks + low).clamp(0, 255)
    whole = shifted.floor()
    missing = wanted - whole.sum(1, keepdim=True)
    rank = (shifted - whole).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    filled = whole + (rank < missing)
    images = functional.fold(filled, (height, width), size, stride=size)
    return images.reshape(batch, channels, height, width).to(torch.uint8)


def hide(images: Tensor, hidden: Tensor) -> Tensor:
    """uint8 images (B, C, H, W) with hidden pixels in grey, to be looked at."""
    return torch.where(hidden, torch.full_like(images, 128), images)
