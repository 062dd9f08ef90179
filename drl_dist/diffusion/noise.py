"""Counter-based random numbers: Philox4x32-10, keyed by (seed, purpose, sample, level, chain step).

Every random number of training and sampling is a pure function of its use, so results depend neither on how samples are
distributed over workers nor on interruptions. The integers are those of Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3" (SC 2011), on every device; normals are computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Protocol

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

MAX_LEVELS = 1 << 12
MAX_CHAIN_STEPS = 1 << 20
MAX_SAMPLE_IDS = 1 << 48


@unique
class Purpose(IntEnum):
    """Uses of random numbers; each has numbers of its own."""

    LEVEL = 0
    """Noise level of a training image."""
    BASE = 1
    """Noise of x_t."""
    TRANSITION = 2
    """Noise from x_t to x_{t+1}."""
    TRAIN_CHAIN = 3
    """Chain that makes a training negative."""
    PRIOR = 4
    """x_T of a generated image."""
    SAMPLE_CHAIN = 5
    """Chains that make a generated image."""
    CHOICE = 6
    """Random choices of a chain: acceptance, directions."""
    OBSERVED = 8
    """Noise of the observed part of an image, at each level."""
    RENOISE = 9
    """Noise from x_t back to x_{t+1} between two rounds of a level."""
    HIDE = 10
    """Pixels that a random mask hides."""
    DEGRADE = 11
    """Noise of an image that is to be denoised."""
    TOY_DATA = 12
    """Distance of a point of two-dimensional data from the middle of its component (`drl_dist.toy`)."""
    TOY_CHOICE = 13
    """Component of a point of two-dimensional data, and its position along that component."""
    REVERSE_CHAIN = 14
    """Chains that lead an image up the ladder."""
    DEQUANTISE = 15
    """Position of a pixel within the bin of its grey level."""
    TRAIN_START = 16
    """Start of a chain that makes a training negative."""
    SAMPLE_START = 17
    """Starts of chains that make a generated image."""
    TRAIN_BEFORE = 18
    """What goes before the first step of a chain that makes a training negative (`LeimkuhlerMatthews`)."""
    SAMPLE_BEFORE = 19
    """The same of chains that make a generated image."""
    RESAMPLE = 20
    """Which of several weighted chains are taken."""
    LABEL = 21
    """Labels that the network is not given while training."""
    INFER_LABEL = 22
    """Noise of an image whose label is inferred."""
    SAMPLE_LABEL = 23
    """The label of a generated image, where labels are as frequent as in the data."""


class Noise(Protocol):
    """A source of random numbers that are addressed by their use."""

    def normal(
        self,
        purpose: Purpose,
        sample_ids: Tensor,
        level: Tensor | int,
        chain_steps: Sequence[int],
        shape: Sequence[int],
    ) -> Tensor:
        """Standard normals, float32 `(len(chain_steps), B, *shape)`, for B samples.

        Args:
            purpose: what the numbers are for.
            sample_ids: (B,) int64.
            level: noise level, one for all or (B,) int64.
            chain_steps: steps of the chain; ``(0,)`` where there is no chain.
            shape: shape of one sample.
        """
        ...

    def uniform(
        self, purpose: Purpose, sample_ids: Tensor, level: Tensor | int, chain_steps: Sequence[int], count: int
    ) -> Tensor:
        """Numbers in (0, 1), float64 (len(chain_steps), B, count); arguments as `normal`."""
        ...


@dataclass(frozen=True)
class PhiloxNoise:
    """Counter-based noise: the same seed and address give the same number, everywhere.

    Args:
        seed: 0 <= seed < 2**63.
    """

    seed: int

    def normal(
        self,
        purpose: Purpose,
        sample_ids: Tensor,
        level: Tensor | int,
        chain_steps: Sequence[int],
        shape: Sequence[int],
    ) -> Tensor:
        """See `Noise.normal`.

        Raises:
            ValueError: a level or chain step is too large for the counter.
        """
        size = math.prod(shape)
        words = self._words(purpose, sample_ids, level, chain_steps, (size + 3) // 4)
        # Box-Muller on the pairs (0, 1) and (2, 3); u is in (0, 1), so its logarithm is finite.
        uniforms = [word.double().add_(0.5).mul_(2.0**-32) for word in words]
        normals: list[Tensor] = []
        for first, second in ((uniforms[0], uniforms[1]), (uniforms[2], uniforms[3])):
            radius = first.log_().mul_(-2.0).sqrt_()
            angle = second.mul_(2.0 * math.pi)
            normals += [radius * torch.cos(angle), radius * torch.sin(angle)]
        flat = torch.stack(normals, dim=-1).flatten(-2)[..., :size]
        return flat.to(torch.float32).reshape(len(chain_steps), len(sample_ids), *shape)

    def uniform(
        self, purpose: Purpose, sample_ids: Tensor, level: Tensor | int, chain_steps: Sequence[int], count: int
    ) -> Tensor:
        """See `Noise.uniform`; errors as `normal`."""
        words = self._words(purpose, sample_ids, level, chain_steps, (count + 1) // 2)
        # 52 bits each: float64 holds them exactly together with the added half, which keeps them off 0 and 1.
        pairs = [((high << 20) + (low >> 12)).double().add_(0.5).mul_(2.0**-52) for high, low in (words[:2], words[2:])]
        return torch.stack(pairs, dim=-1).flatten(-2)[..., :count]

    def _words(
        self, purpose: Purpose, sample_ids: Tensor, level: Tensor | int, chain_steps: Sequence[int], num_blocks: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four random 32-bit words per block, each (len(chain_steps), B, num_blocks) int64."""
        if not 0 <= min(chain_steps) <= max(chain_steps) < MAX_CHAIN_STEPS:
            raise ValueError(
                f"chain steps must lie in [0, {MAX_CHAIN_STEPS}), got {min(chain_steps)} to {max(chain_steps)}"
            )
        if isinstance(level, int) and not 0 <= level < MAX_LEVELS:
            raise ValueError(f"a level must lie in [0, {MAX_LEVELS}), got {level}")
        device = sample_ids.device
        steps = _numbers(chain_steps, device)[:, None, None]
        if isinstance(level, int):
            level = torch.full((), level, dtype=torch.int64, device=device)
        levels = level.to(device, torch.int64).expand(len(sample_ids))[None, :, None]
        ids = sample_ids[None, :, None]
        blocks = torch.arange(num_blocks, device=device)[None, None, :]
        counter = (
            blocks,
            (levels << 20) | steps,
            ids & _MASK,
            (int(purpose) << 16) | (ids >> 32),
        )
        key = (self.seed & _MASK, self.seed >> 32)
        first, second, third, fourth = torch.broadcast_tensors(*counter)
        return philox((first, second, third, fourth), key)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of one shape that hold 32-bit words.
        key: two 32-bit words.

    Returns:
        Four int64 tensors of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A product of two 32-bit words overflows int64, but its bits are right; the mask removes the copied sign.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _numbers(values: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers as int64. A copy from the host would wait for all that the device has to do before, so successive
    ones are counted there."""
    successive = range(values[0], values[0] + len(values))
    if tuple(values) == tuple(successive):
        return torch.arange(successive.start, successive.stop, device=device)
    return torch.tensor(list(values), dtype=torch.int64, device=device)
