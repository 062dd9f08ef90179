"""Progressive sampling with any start and any chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.chains.model import BasisName, Model, Place
from benchmarks.chains.moves import Chain, Langevin
from drl_dist.common.images import to_uint8
from drl_dist.diffusion.noise import Purpose
from drl_dist.sampling.tweedie import Tweedie

_TOGETHER = 256
_PLAIN = Langevin()


@dataclass(frozen=True)
class Way:
    """A way of drawing images."""

    steps: int | tuple[int, ...] = 3
    """K, or that of each level from 0 on."""
    chain: Chain = _PLAIN
    starts_by_tweedie: bool = True
    """At a draw around the mean of y_t given x_{t+1}; else at x_{t+1}."""
    reuses: bool = False
    """The start takes the last gradient of the chain above for that at its end, which costs one."""
    start_basis: BasisName | None = None
    """Starts have the covariance of data that are normal in a basis; else that of y_t given x_{t+1} and the data."""
    has_end: bool = True
    """One step by Tweedie's formula from y_0 to the image; else the noise of x_0 stays in it."""
    noise_scale: float = 1.0
    """Factor on the noise of starts and chains."""

    def steps_at(self, level: int) -> int:
        """K of a level."""
        return self.steps if isinstance(self.steps, int) else self.steps[level]


@torch.no_grad()
def draw(model: Model, way: Way, sample_ids: Tensor) -> Tensor:
    """Images (B, C, H, W), float32, about in [-1, 1].

    Args:
        sample_ids: (B,) int64, keys of the noise.
    """
    count, top = len(sample_ids), model.num_levels - 1
    x = model.noise.normal(Purpose.PRIOR, sample_ids, 0, (0,), model.shape)[0]
    y, gradient, density = x, None, model.density(top, count)
    for level in range(top, -1, -1):
        above, density = density, model.density(level, count)
        place = Place(model, level, x, density, sample_ids, way.noise_scale)
        y = x
        if way.starts_by_tweedie:
            if level == top:
                score = -x
            else:
                # Energy t + 1 is the log-density of a multiple of x_{t+1}.
                scale = model.scale(level + 1)
                known = gradient if way.reuses and gradient is not None else above(scale * x)[1]
                score = scale * known
            y = _start(place, score, way)
        y, gradient = way.chain.run(place, y, way.steps_at(level))
        x = y / model.scale(level)
    if way.has_end:
        x = Tweedie(model.levels, model.ladder).clean(model.raw_at(torch.zeros_like(sample_ids)), y)
        model.num_gradients += 1
    return x


def draw_pixels(model: Model, way: Way, count: int) -> Tensor:
    """Images (count, C, H, W), uint8."""
    parts: Sequence[Tensor] = torch.arange(count).split(_TOGETHER)
    return torch.cat([to_uint8(draw(model, way, ids)) for ids in parts])


def _start(place: Place, score: Tensor, way: Way) -> Tensor:
    """A draw around the mean of y_t given x_{t+1}, whose log-density has this gradient; see `Tweedie.draw`."""
    model, level, ladder = place.model, place.level, place.model.ladder
    scale, std = model.scale(level), float(ladder.std[level + 1])
    mean = scale / float(ladder.scale[level + 1]) * (place.x_noisy + std**2 * score)
    normal = way.noise_scale * place.normal_of_start()
    if way.start_basis is not None:
        root = model.root(way.start_basis, level, is_start=True)
        return mean + (normal.flatten(1) @ root).reshape(normal.shape)
    return mean + scale * float(ladder.cumulative_std[level]) * std / float(ladder.cumulative_std[level + 1]) * normal
