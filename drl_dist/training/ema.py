"""A moving average over every parameter and every spectral-norm vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """shadow <- decay * shadow + (1 - decay) * value, after each step.

    Args:
        network: whose parameters and buffers are averaged; the shadow starts as a copy of them.
        decay: of the average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow: dict[str, Tensor] = {name: value.clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the shadow towards the network."""
        values = network.state_dict()
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self.shadow.values()), [values[name] for name in self.shadow], 1 - self.decay
        )
