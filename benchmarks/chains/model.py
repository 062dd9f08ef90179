"""What a way of sampling knows: the energies of all levels, the ladder, and how the data vary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.noise import Noise, Purpose
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad, RawAtLevel, scaled_density

BasisName = Literal["pixels", "cosines", "components"]


@dataclass(frozen=True)
class Basis:
    """Directions of images, and the variances of the data along them."""

    directions: Tensor
    """(D, D) float64, orthonormal, one a row."""
    variances: Tensor
    """(D,) float64."""

    def root(self, variances: Tensor) -> Tensor:
        """The symmetric matrix, (D, D) float32, whose square has these variances (D,) along the directions."""
        return (self.directions.T @ (variances.sqrt()[:, None] * self.directions)).float()


def bases_of(images: Tensor) -> Mapping[BasisName, Basis]:
    """Pixels, the discrete cosine transform, and the principal components of images (N, C, H, W) in [-1, 1]."""
    _, channels, height, width = images.shape
    flat = images.double().flatten(1)
    covariance = flat.T.cov()
    _, components = torch.linalg.eigh(covariance)
    waves = torch.kron(_cosines(height), _cosines(width))
    directions: dict[BasisName, Tensor] = {
        "pixels": torch.eye(flat.shape[1], dtype=torch.float64),
        "cosines": torch.kron(torch.eye(channels, dtype=torch.float64), waves),
        "components": components.T.contiguous(),
    }
    return {name: Basis(rows, ((rows @ covariance) * rows).sum(1).clamp(min=0.0)) for name, rows in directions.items()}


def _cosines(size: int) -> Tensor:
    places = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi * (places[None] + 0.5) * places[:, None] / size)
    return waves / waves.norm(dim=1, keepdim=True)


@dataclass
class Model:
    """Energies f_t of y_t on a ladder; counts its gradients.

    Args:
        levels: scales of the levels, (T,) float64; their step sizes are not used.
        ladder: the forward process.
        raw_at: the network.
        bases: directions, by name.
        noise: of all random numbers.
        shape: of one image, (C, H, W).
    """

    levels: Levels
    ladder: NoiseLadder
    raw_at: RawAtLevel
    bases: Mapping[BasisName, Basis]
    noise: Noise
    shape: tuple[int, ...]
    num_gradients: int = 0
    """Computed so far, each of a batch of images."""
    _roots: dict[tuple[BasisName, int, bool], Tensor] = field(default_factory=dict[tuple[BasisName, int, bool], Tensor])

    @property
    def num_levels(self) -> int:
        """T."""
        return self.levels.num_levels

    def density(self, level: int, count: int) -> LogDensityAndGrad:
        """f_t and its gradient, of `count` images."""
        which = torch.full((count,), level)
        inner = scaled_density(self.raw_at(which), self.levels.energy_scale[which].float())

        def counted(y: Tensor) -> tuple[Tensor, Tensor]:
            self.num_gradients += 1
            return inner(y)

        return counted

    def scale(self, level: int) -> float:
        """y_t = scale * x_t."""
        return float(self.levels.transition_scale[level])

    def precision(self, level: int) -> float:
        """1 / sigma_{t+1}**2, what x_{t+1} adds to the precision of y_t; 0 at a marginal top level."""
        return float(self.levels.recovery_precision[level])

    def largest_precision(self, level: int) -> float:
        """The most curvature that log p(y_t | x_{t+1}) can have, whatever the data."""
        return self.precision(level) + float(self.ladder.noise_in_y(self.levels.transition_scale)[level]) ** -2

    def root(self, name: BasisName, level: int, *, is_start: bool = False) -> Tensor:
        """Symmetric root (D, D) of the covariance of y_t given x_{t+1}, of data that are normal in a basis.

        Args:
            is_start: also where chains forget x_{t+1}, at a marginal top level.
        """
        key = (name, level, is_start)
        if key not in self._roots:
            basis, scale = self.bases[name], self.scale(level)
            of_y = scale**2 * self._variances_of_x(basis, level)
            known = self.precision(level)
            if is_start:
                known = float(self.ladder.scale[level + 1] / self.ladder.std[level + 1]) ** 2 / scale**2
            self._roots[key] = basis.root(1 / (known + 1 / of_y))
        return self._roots[key]

    def _variances_of_x(self, basis: Basis, level: int) -> Tensor:
        ladder = self.ladder
        return ladder.cumulative_scale[level] ** 2 * basis.variances + ladder.cumulative_std[level] ** 2


@dataclass(frozen=True)
class Place:
    """A level on the way down, for a batch of images."""

    model: Model
    level: int
    x_noisy: Tensor
    """(B, C, H, W) x_{t+1}."""
    density: LogDensityAndGrad
    """f_t and its gradient."""
    sample_ids: Tensor
    """(B,) keys of the noise."""
    noise_scale: float
    """Factor on all noise."""

    def gradient(self, y: Tensor) -> Tensor:
        """Of f_t."""
        return self.density(y)[1]

    def pull(self, y: Tensor) -> Tensor:
        """What x_{t+1} adds to the gradient of f_t."""
        return self.model.precision(self.level) * (self.x_noisy - y)

    def normal(self, chain_step: int) -> Tensor:
        """Standard normals, like x_noisy."""
        return self.model.noise.normal(Purpose.SAMPLE_CHAIN, self.sample_ids, self.level, (chain_step,), self._shape)[0]

    def normal_before(self) -> Tensor:
        """Standard normals, like x_noisy: what a chain moves with before its first step."""
        return self.model.noise.normal(Purpose.SAMPLE_BEFORE, self.sample_ids, self.level, (0,), self._shape)[0]

    def normal_of_start(self) -> Tensor:
        """Standard normals, like x_noisy."""
        return self.model.noise.normal(Purpose.SAMPLE_START, self.sample_ids, self.level, (0,), self._shape)[0]

    def uniform(self, chain_step: int) -> Tensor:
        """(B, 1) in (0, 1)."""
        return self.model.noise.uniform(Purpose.CHOICE, self.sample_ids, self.level, (chain_step,), 1)[0]

    def spread(self, values: Tensor, basis: BasisName | None) -> Tensor:
        """The symmetric root of the covariance that a basis gives y_t, applied to images; without a basis, that of the
        least covariance that it can have in any direction.
        """
        if basis is None:
            return values * self.model.largest_precision(self.level) ** -0.5
        return (values.flatten(1) @ self.model.root(basis, self.level)).reshape(values.shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self.x_noisy.shape[1:])
