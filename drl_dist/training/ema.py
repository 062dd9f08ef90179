"""A moving average over every parameter and every spectral-norm vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from drl_dist.energy.network import EnergyNetwork

SETTLING_ITERATIONS = 100
"""Power iterations on averaged weights. An average of unit vectors is shorter than they are and none of them fits the
averaged weights, so without these the effective weights would be many times too large or too small."""


class Ema:
    """shadow <- decay * shadow + (1 - decay) * value, after each step.

    Args:
        network: whose parameters and buffers are averaged; the shadow starts as a copy of them.
        decay: of the average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow: dict[str, Tensor] = {name: value.clone() for name, value in network.state_dict().items()}

    def update(self, network: nn.Module) -> None:
        """Move the shadow towards the network; whole numbers, which some networks of the user's keep, are copied."""
        move_towards(self.shadow, network.state_dict(), 1 - self.decay)


@torch.no_grad()
def move_towards(shadow: Mapping[str, Tensor], values: Mapping[str, Tensor], weight: float) -> None:
    """shadow <- (1 - weight) * shadow + weight * value, in place; whole numbers are copied."""
    averaged = [name for name, value in shadow.items() if value.is_floating_point()]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        [shadow[name] for name in averaged], [values[name] for name in averaged], weight
    )
    for name in shadow.keys() - set(averaged):
        shadow[name].copy_(values[name])


def load_averaged(network: EnergyNetwork, averaged: Mapping[str, Tensor]) -> EnergyNetwork:
    """Give a network averaged weights, for sampling.

    Args:
        network: changed in place; takes no parameter gradients any more.
        averaged: `Ema.shadow`, as it is or as a checkpoint keeps it.

    Returns:
        the network.

    Raises:
        RuntimeError: names or shapes are not those of this network.
    """
    network.load_state_dict(dict(averaged))
    for _ in range(SETTLING_ITERATIONS):
        network.advance_power_iteration()
    return network.eval().requires_grad_(False)
