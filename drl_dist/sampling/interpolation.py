"""Interpolation between generated images (figures 5 and 11 to 13): a noise source that blends those of two images.

The sampler is unchanged. Two generated images differ only by their noise, so the same sampler makes an image between
them from noise between theirs: that of x_T and of every Langevin step of every level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.diffusion.noise import Noise, Purpose


@dataclass(frozen=True, eq=False)
class InterpolatedNoise:
    """Spherical interpolation: at weight w between images a and b, every normal is cos(w pi/2) e_a + sin(w pi/2) e_b.

    The angle is pi/2, not the angle between the two vectors. Independent normals of many dimensions are nearly
    orthogonal anyway; with a fixed angle the two factors do not depend on the numbers, and since their squares add up
    to 1, the blend is exactly standard normal in every pixel, independent between pixels, steps and levels. So every
    image of the row has exactly the distribution of a generated image. The measured angle would differ from step to
    step, and its blends would only nearly be normal. At w = 0 and w = 1 the numbers are those of a and b, bit for bit.

    Sample ``p * len(weights) + c`` is at ``weights[c]`` between the images of pair p.

    Args:
        noise: the source of both images.
        first: (P,) int64, sample ids of the images at w = 0.
        second: (P,) int64, sample ids of the images at w = 1.
        weights: (columns,) numbers in [0, 1].
        second_noise: the source of the images at w = 1, by default the same.

    Raises:
        ValueError: an image is paired with itself, whose noise is not independent, or weights lie outside [0, 1].
    """

    noise: Noise
    first: Tensor
    second: Tensor
    weights: Tensor
    second_noise: Noise | None = None

    def __post_init__(self) -> None:
        has_equal = self.second_noise is None and bool((self.first == self.second).any())
        if self.first.shape != self.second.shape or has_equal:
            raise ValueError(f"pairs must be of two images each, got {self.first} and {self.second}")
        if not bool(((self.weights >= 0) & (self.weights <= 1)).all()):
            raise ValueError(f"weights must lie in [0, 1], got {self.weights}")

    @property
    def sample_ids(self) -> Tensor:
        """Every sample, pair by pair, (P * columns,) int64."""
        return torch.arange(len(self.first) * len(self.weights), device=self.first.device)

    def normal(
        self,
        purpose: Purpose,
        sample_ids: Tensor,
        level: Tensor | int,
        chain_steps: Sequence[int],
        shape: Sequence[int],
    ) -> Tensor:
        """See `Noise.normal`."""
        first, second, weight = self._at(sample_ids)
        start = self.noise.normal(purpose, first, level, chain_steps, shape)
        end = (self.second_noise or self.noise).normal(purpose, second, level, chain_steps, shape)
        return _blend(start, end, weight.reshape(-1, *(1,) * len(shape)))

    def uniform(
        self, purpose: Purpose, sample_ids: Tensor, level: Tensor | int, chain_steps: Sequence[int], count: int
    ) -> Tensor:
        """See `Noise.uniform`: blends the normals that have these cumulative probabilities."""
        first, second, weight = self._at(sample_ids)
        start = self.noise.uniform(purpose, first, level, chain_steps, count)
        end = (self.second_noise or self.noise).uniform(purpose, second, level, chain_steps, count)
        weight = weight[:, None]
        blended = torch.special.ndtr(_blend(torch.special.ndtri(start), torch.special.ndtri(end), weight))
        blended = blended.clamp(2.0**-53, 1 - 2.0**-53)
        return torch.where(weight == 0, start, torch.where(weight == 1, end, blended))

    def _at(self, sample_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two images and the weight of each sample, (B,)."""
        pair, column = sample_ids // len(self.weights), sample_ids % len(self.weights)
        return self.first[pair], self.second[pair], self.weights[column].double()


def _blend(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """cos(w pi/2) start + sin(w pi/2) end, computed in float64, in the dtype of `start`."""
    angle = weight * (math.pi / 2)
    blended = (angle.cos() * start + angle.sin() * end).to(start.dtype)
    # The cosine of pi/2, which is rounded, is not 0.
    return torch.where(weight == 0, start, torch.where(weight == 1, end, blended))
