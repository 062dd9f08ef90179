"""Energies that are known: of the training images with a little noise, a mixture of as many normal densities.

With them nothing but the chains is at fault for what is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.chains.model import Model, bases_of
from drl_dist.build import build_ladder, build_levels
from drl_dist.common.images import to_uint8, to_unit_range
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad

NOISE = 0.15
"""Standard deviation of the noise, a little more than a grey level of the digits."""


@dataclass(frozen=True)
class Mixture:
    """f_t of data that are one of these images, each as likely, and noise.

    Args:
        images: (N, C, H, W) in [-1, 1].
        noise: its standard deviation.
        levels, ladder: the forward process.
    """

    images: Tensor
    noise: float
    levels: Levels
    ladder: NoiseLadder

    def raw_at(self, level: Tensor) -> LogDensityAndGrad:
        """As a network's, for levels (B,) that are all the same."""
        t = int(level[0])
        scale, kept = float(self.levels.transition_scale[t]), float(self.ladder.cumulative_scale[t])
        centres = (scale * kept * self.images).flatten(1)
        variance = scale**2 * ((kept * self.noise) ** 2 + float(self.ladder.cumulative_std[t]) ** 2)
        half_squares = 0.5 * centres.square().sum(1)

        def raw(y: Tensor) -> tuple[Tensor, Tensor]:
            flat = y.flatten(1)
            # Without |y|**2, which all of them have.
            logits = (flat @ centres.T - half_squares) / variance
            value = logits.logsumexp(1) - 0.5 * flat.square().sum(1) / variance
            return value, ((logits.softmax(1) @ centres - flat) / variance).reshape(y.shape)

        return raw

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Images (count, C, H, W), uint8, as a perfect sampler draws them."""
        chosen = self.images[torch.randint(len(self.images), (count,), generator=generator)]
        return to_uint8(chosen + self.noise * torch.randn(chosen.shape, generator=generator))


def exact_model(images: Tensor, experiment: Experiment) -> tuple[Model, Mixture]:
    """What a way of sampling knows, with the exact energies of images (N, C, H, W), uint8, with noise."""
    ladder, x = build_ladder(experiment.diffusion), to_unit_range(images)
    levels = build_levels(experiment, ladder)
    mixture = Mixture(x, NOISE, levels, ladder)
    noisy = x + NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    model = Model(levels, ladder, mixture.raw_at, bases_of(noisy), PhiloxNoise(experiment.train.seed), x.shape[1:])
    return model, mixture
