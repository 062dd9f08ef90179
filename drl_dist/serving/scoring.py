"""Log-densities of an image at every noise level, and where their gradients would change it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.images import to_unit_range
from drl_dist.diffusion.ladder import draw_pairs
from drl_dist.library.arguments import noise_of
from drl_dist.library.engine import check_finite, fixed_sums, frozen_engine
from drl_dist.library.images import GREY_LEVELS, given_images
from drl_dist.library.model import Model
from drl_dist.sampling.labels import wanted

MAX_LEVELS = 16
"""That are scored; of a model with more, this many are spread evenly."""
_BATCH = 64


@dataclass(frozen=True, eq=False)
class LevelScore:
    """An image at a noise level."""

    level: int
    """t, from 0."""
    noise_std: float
    """Standard deviation of the noise in y_t, beside an image of the size of the data, in grey levels of 255."""
    log_density: float
    """f(y_t, t) in nats, up to a constant of the level: that of `drl_dist.Model.log_density`."""
    gradient: Tensor
    """(C, H, W) float32 on the CPU: its derivative with respect to the image's pixels, in nats per grey level."""


class Scorer:
    """Scores images; safe in any thread.

    Args:
        model: whose weights and device it takes.
    """

    def __init__(self, model: Model) -> None:
        self._experiment, self._shape, self._device = model.experiment, model.image_shape, model.device
        # Its own: a captured graph holds the levels of one caller.
        self._engine = frozen_engine(model.experiment, model.weights, model.device)
        ladder = build_ladder(model.experiment.diffusion)
        self._levels = build_levels(model.experiment, ladder)
        self._signal = ladder.signal_in_y(self._levels.transition_scale)
        self._noise = ladder.noise_in_y(self._levels.transition_scale)
        self._ladder = ladder.to(model.device)
        self._turn = threading.Lock()
        spread = torch.linspace(0, model.num_levels - 1, min(MAX_LEVELS, model.num_levels), dtype=torch.float64)
        self.levels = tuple(int(t) for t in spread.round())
        """Noise levels that are scored, from 0."""

    def scores(self, image: Tensor, *, seed: int = 0, label: str | None = None) -> list[LevelScore]:
        """An image at each of `levels`.

        Args:
            image: (C, H, W), uint8 or floating point in [0, 1].
            seed: keys the noise of y_t.
            label: that the energies are given, by its name; none by default.

        Raises:
            UserError: an argument cannot be used, or a log-density is not finite.
        """
        given = given_images(image[None], what="image", shape=self._shape).expand(len(self.levels), -1, -1, -1)
        level = torch.tensor(self.levels)
        raw, gradient = self._raw(given, torch.zeros(len(level), dtype=torch.int64), level, seed, label)
        scale = self._levels.energy_scale[level]
        # y_t has the image times a factor, whose pixels have a range of 2.
        slope = (scale * self._signal[level] / GREY_LEVELS).float()
        gradient = gradient.cpu() * slope.reshape(-1, 1, 1, 1)
        values = raw.double().cpu() * scale
        return [
            LevelScore(t, float(self._noise[t] / self._signal[t] * GREY_LEVELS), float(value), change)
            for t, value, change in zip(self.levels, values, gradient, strict=True)
        ]

    def log_densities(self, images: Tensor, *, seed: int = 0) -> Tensor:
        """f(y_t, t) of images at each of `levels`, float64 (len(levels), N) on the CPU.

        Args:
            images: uint8 (N, C, H, W).
            seed: keys the noise, beside each image's place.

        Raises:
            UserError: as `scores`.
        """
        given = given_images(images, shape=self._shape)
        parts = [
            torch.stack([self._raw(given[ids], ids, torch.full_like(ids, t), seed, None)[0] for t in self.levels])
            for ids in torch.arange(len(given)).split(_BATCH)
        ]
        return torch.cat(parts, dim=1).double().cpu() * self._levels.energy_scale[list(self.levels), None]

    def _raw(self, images: Tensor, ids: Tensor, level: Tensor, seed: int, label: str | None) -> tuple[Tensor, Tensor]:
        """Raw outputs (N,) and their gradients with respect to y_t (N, C, H, W)."""
        noise = noise_of(seed)
        asked = wanted(self._experiment.condition, label=label)
        x, ids, level = to_unit_range(images.to(self._device)), ids.to(self._device), level.to(self._device)
        with self._turn, fixed_sums():
            y = draw_pairs(noise, ids, x, level, self._ladder, self._levels.transition_scale).y_pos
            raw, gradient = asked.raw_at(self._engine.raw_at, ids, noise)(level)(y)
            raw, gradient = raw.clone(), gradient.clone()
        check_finite(raw, "log-densities", expected="finite numbers", remedy="use an earlier checkpoint")
        return raw, gradient
