"""Noise of one image, drawn for several levels at once.

A draw for one small image costs little more than its calls of torch, some two hundred; whoever draws for one image at a
time at every level spends half of the time there. The numbers are addressed by their use, so that they are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from drl_dist.diffusion.noise import Noise, Purpose

_NUMBERS_PER_DRAW = 1 << 16
"""Read ahead of what is asked for, as long as a draw has no more numbers than these: a quarter of a MiB."""
_USES = 16
"""That are held at once: a chain of many rounds has other steps in each."""


@dataclass(frozen=True, eq=False)
class ReadAhead:
    """A source of noise for one image whose levels go down; each use of numbers is read ahead by itself.

    Args:
        noise: the source.
    """

    noise: Noise
    _held: dict[tuple[Purpose, tuple[int, ...], tuple[int, ...]], tuple[int, Tensor]] = field(default_factory=dict)

    def normal(
        self,
        purpose: Purpose,
        sample_ids: Tensor,
        level: Tensor | int,
        chain_steps: Sequence[int],
        shape: Sequence[int],
    ) -> Tensor:
        """See `Noise.normal`; B is 1."""
        t = int(level)
        use = (purpose, tuple(chain_steps), tuple(shape))
        top, values = self._held.get(use, (-1, None))
        if values is not None and 0 <= top - t < values.shape[1]:
            return values[:, top - t : top - t + 1]
        size = len(chain_steps) * max(1, torch.Size(shape).numel())
        count = min(t + 1, _NUMBERS_PER_DRAW // size)
        if count < 2 or (use not in self._held and len(self._held) == _USES):
            return self.noise.normal(purpose, sample_ids, level, chain_steps, shape)
        levels = torch.arange(t, t - count, -1, device=sample_ids.device)
        values = self.noise.normal(purpose, sample_ids.expand(count), levels, chain_steps, shape)
        self._held[use] = t, values
        return values[:, :1]

    def uniform(
        self, purpose: Purpose, sample_ids: Tensor, level: Tensor | int, chain_steps: Sequence[int], count: int
    ) -> Tensor:
        """See `Noise.uniform`, which it is."""
        return self.noise.uniform(purpose, sample_ids, level, chain_steps, count)
