"""What every sampler of this package is: a step from (state, noise) to (state, info)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

ChainNoise = Callable[[Sequence[int]], Tensor]
"""Chain steps -> standard normals (len(chain_steps), B, ...)."""

# Noise is drawn for as many chain steps at once as stay below this many numbers: few small calls, bounded memory.
_NUMBERS_PER_DRAW = 1 << 18


class State(NamedTuple):
    """What a chain carries from step to step."""

    y: Tensor
    """(B, ...) float32."""


class Info(NamedTuple):
    """What one step says about itself, per chain."""

    is_accepted: Tensor
    """(B,) bool."""


class Kernel(Protocol):
    """One transition of B chains at once."""

    def __call__(self, state: State, noise: Tensor) -> tuple[State, Info]:
        """Move every chain once.

        Args:
            state: where the chains are.
            noise: (B, ...) standard normals.
        """
        ...


def run_chain(kernel: Kernel, y: Tensor, noise: ChainNoise, num_chain_steps: int) -> tuple[State, Tensor]:
    """`num_chain_steps` transitions from y.

    Returns:
        The last state, and the share of accepted steps of each chain, float32 (B,).
    """
    state = State(y)
    accepted = torch.zeros(len(y), device=y.device)
    per_draw = max(1, min(num_chain_steps, _NUMBERS_PER_DRAW // max(1, y.numel())))
    for start in range(0, num_chain_steps, per_draw):
        for step_noise in noise(range(start, min(start + per_draw, num_chain_steps))):
            state, info = kernel(state, step_noise)
            accepted += info.is_accepted
    return state, accepted / num_chain_steps


def root_mean_square(values: Tensor) -> Tensor:
    """Per-pixel root mean square of each sample, (B, ...) -> (B,)."""
    return values.square().flatten(1).mean(1).sqrt()
