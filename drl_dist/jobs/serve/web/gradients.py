"""Gradients as pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from drl_dist.data.shards import encode_png

_RED, _BLUE = (0.70, 0.09, 0.17), (0.13, 0.40, 0.67)


def gradient_png(gradient: Tensor) -> tuple[bytes, float]:
    """A PNG of a gradient, and its largest absolute value, which has the strongest colour.

    White is 0, red more and blue less; of a colour image, the sum of its channels, which get brighter together.

    Args:
        gradient: (C, H, W) float32.
    """
    values = gradient.sum(0)
    scale = float(values.abs().max())
    share = values / scale if scale > 0 else torch.zeros_like(values)
    strongest = torch.where(share[None] >= 0, *(torch.tensor(colour).reshape(3, 1, 1) for colour in (_RED, _BLUE)))
    pixels = 1 + share.abs() * (strongest - 1)
    return encode_png((pixels * 255).round().to(torch.uint8).numpy()), scale
