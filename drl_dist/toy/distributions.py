"""Two-dimensional distributions with known densities; each coordinate has a standard deviation between 1.1 and 1.5.

A point is a pure function of (seed, sample id). The distributions keep their form under the forward process
x_t = scale * x + noise_std * e, so the density of every noise level has a closed form (for the spirals, a sum).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.diffusion.noise import Noise, Purpose
from drl_dist.energy.analytic import GaussianMixture

_NODES = 300
"""Number of points that approximate a spiral arm, a third of the distribution's own std apart."""
_SHARP = 1e-9
"""Width of edges that are not blurred."""


class DataDistribution(ABC):
    """A distribution of points in the plane, with samples and their density."""

    def sample(self, noise: Noise, sample_ids: Tensor) -> Tensor:
        """Points (B, 2) float32 for sample ids (B,) int64.

        Args:
            noise: source of the numbers for the purposes TOY_CHOICE and TOY_DATA.
            sample_ids: (B,) int64, 0 <= id < 2**48.
        """
        uniforms = noise.uniform(Purpose.TOY_CHOICE, sample_ids, 0, (0,), 2)[0]
        normals = noise.normal(Purpose.TOY_DATA, sample_ids, 0, (0,), (2,))[0].double()
        return self._place(uniforms, normals).float()

    @abstractmethod
    def _place(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Points (B, 2) from two uniforms (B, 2) in (0, 1) and two normals (B, 2), float64."""

    @abstractmethod
    def density(self, points: Tensor) -> Tensor:
        """The normalised density (N,) at points (N, 2) float64, per unit of area."""

    @abstractmethod
    def affine(self, scale: float, noise_std: float) -> DataDistribution:
        """The distribution of scale * x + noise_std * e for x of this distribution and standard normal e."""

    def density_on_square(self, axis: Tensor) -> Tensor:
        """The density (n, n) on the square axis x axis, axis (n,) float64; the first index is the first coordinate."""
        return self.density(torch.cartesian_prod(axis, axis)).reshape(len(axis), len(axis))


@dataclass(frozen=True)
class Checkerboard(DataDistribution):
    """Uniform on the eight black squares of a 4 x 4 board centred on 0, blurred by N(0, std**2 I).

    Args:
        side: side length of a square.
        std: standard deviation of the blur; 0 leaves the edges sharp.
    """

    side: float = 1.0
    std: float = 0.0

    def _place(self, uniform: Tensor, normal: Tensor) -> Tensor:
        x = 4 * uniform[:, 0]
        row = 2 * uniform[:, 1]
        # Every second square of a column is black: the position in two rows gives the square and the position in it.
        y = row + row.floor() + x.floor() % 2
        return (torch.stack([x, y], dim=1) - 2) * self.side + self.std * normal

    def density(self, points: Tensor) -> Tensor:
        """(E(x) E(y) + O(x) O(y)) / (8 side**2), with E and O the blurred indicators of even and odd columns."""
        x, y = points.unbind(1)
        return self._product(x, y)

    def density_on_square(self, axis: Tensor) -> Tensor:
        """See `DataDistribution.density_on_square`."""
        return self._product(axis[:, None], axis[None])

    def _product(self, x: Tensor, y: Tensor) -> Tensor:
        both = [self._columns(x, first) * self._columns(y, first) for first in (-2, -1)]
        return (both[0] + both[1]) / (8 * self.side**2)

    def _columns(self, x: Tensor, first: int) -> Tensor:
        """The blurred indicator of the two columns that begin at first * side and (first + 2) * side."""
        width = max(self.std, _SHARP)
        total = torch.zeros_like(x)
        for column in (first, first + 2):
            left, right = column * self.side, (column + 1) * self.side
            total += torch.special.ndtr((x - left) / width) - torch.special.ndtr((x - right) / width)
        return total

    def affine(self, scale: float, noise_std: float) -> Checkerboard:
        """See `DataDistribution.affine`."""
        return Checkerboard(self.side * scale, math.hypot(self.std * scale, noise_std))


@dataclass(frozen=True)
class Rings(DataDistribution):
    """Concentric circles, equally dense along their lengths, blurred by N(0, std**2 I)."""

    radii: tuple[float, ...] = (0.6, 1.3, 2.0)
    std: float = 0.12

    def _place(self, uniform: Tensor, normal: Tensor) -> Tensor:
        radii = torch.tensor(self.radii, dtype=torch.float64)
        edges = radii.cumsum(0) / radii.sum()
        ring = torch.searchsorted(edges[:-1].contiguous(), uniform[:, 0].contiguous(), right=True)
        angle = 2 * math.pi * uniform[:, 1]
        return radii[ring][:, None] * torch.stack([angle.cos(), angle.sin()], dim=1) + self.std * normal

    def density(self, points: Tensor) -> Tensor:
        """sum_k w_k exp(-(r**2 + r_k**2) / 2 std**2) I_0(r r_k / std**2) / (2 pi std**2), r = |point|: the mean of the
        Gaussian over a circle is a Bessel function."""
        radius = points.square().sum(1).sqrt()
        total = torch.zeros_like(radius)
        for r in self.radii:
            # i0e is I_0 times exp(-argument), which completes the square.
            bessel = torch.special.i0e(radius * r / self.std**2)
            total += r / sum(self.radii) * torch.exp(-0.5 * ((radius - r) / self.std) ** 2) * bessel
        return total / (2 * math.pi * self.std**2)

    def affine(self, scale: float, noise_std: float) -> Rings:
        """See `DataDistribution.affine`."""
        return Rings(tuple(scale * r for r in self.radii), math.hypot(self.std * scale, noise_std))


class BlurredPoints(DataDistribution):
    """A mixture of equally likely centres, blurred by N(0, std**2 I)."""

    std: float

    @abstractmethod
    def centres(self) -> Tensor:
        """(K, 2) float64."""

    def density(self, points: Tensor) -> Tensor:
        """The mean of the centres' Gaussian densities."""
        mixture = GaussianMixture(self.centres(), self.std)
        return (mixture.log_density(points) - mixture.log_z()).exp()

    def density_on_square(self, axis: Tensor) -> Tensor:
        """See `DataDistribution.density_on_square`. A Gaussian is a product over coordinates, so one matrix product
        replaces n**2 K exponentials."""
        centres = self.centres()
        first, second = (torch.exp(-0.5 * ((axis[:, None] - c[None]) / self.std) ** 2) for c in centres.unbind(1))
        return first @ second.mT / (len(centres) * 2 * math.pi * self.std**2)


@dataclass(frozen=True)
class Mixture(BlurredPoints):
    """Equally weighted Gaussians on a circle."""

    num_components: int = 8
    radius: float = 2.0
    std: float = 0.2

    def centres(self) -> Tensor:
        """(num_components, 2) float64."""
        angle = 2 * math.pi / self.num_components * torch.arange(self.num_components, dtype=torch.float64)
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)

    def _place(self, uniform: Tensor, normal: Tensor) -> Tensor:
        return self.centres()[(uniform[:, 0] * self.num_components).long()] + self.std * normal

    def affine(self, scale: float, noise_std: float) -> Mixture:
        """See `DataDistribution.affine`."""
        return dataclasses.replace(self, radius=self.radius * scale, std=math.hypot(self.std * scale, noise_std))


@dataclass(frozen=True)
class Spirals(BlurredPoints):
    """Two interleaved arms of 1.3 turns, about equally dense along their lengths, blurred by N(0, std**2 I).

    Samples come from the arms themselves; their density is computed by the midpoint rule along the arms.
    """

    inner_radius: float = 0.3
    outer_radius: float = 2.3
    std: float = 0.12

    def _arms(self, share: Tensor, arm: Tensor) -> Tensor:
        """Points (B, 2) on arms (B,), 0 or 1, such that a share (B,) of the arm's data lies further inwards."""
        inner, outer = self.inner_radius**2, self.outer_radius**2
        radius = (inner + share * (outer - inner)).sqrt()
        angle = 3 * math.pi * radius / self.outer_radius + math.pi * arm
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)

    def centres(self) -> Tensor:
        """The midpoints of equal shares of both arms, (600, 2) float64."""
        share = (torch.arange(_NODES, dtype=torch.float64) + 0.5) / _NODES
        return torch.cat([self._arms(share, torch.full_like(share, arm)) for arm in (0, 1)])

    def _place(self, uniform: Tensor, normal: Tensor) -> Tensor:
        return self._arms(uniform[:, 0], (uniform[:, 1] * 2).floor()) + self.std * normal

    def affine(self, scale: float, noise_std: float) -> Spirals:
        """See `DataDistribution.affine`."""
        return Spirals(self.inner_radius * scale, self.outer_radius * scale, math.hypot(self.std * scale, noise_std))


DISTRIBUTIONS: dict[str, DataDistribution] = {
    "checkerboard": Checkerboard(),
    "rings": Rings(),
    "mixture": Mixture(),
    "spirals": Spirals(),
}


def distribution(name: str) -> DataDistribution:
    """The distribution of a name.

    Raises:
        UserError: there is no distribution of this name.
    """
    if name not in DISTRIBUTIONS:
        raise UserError(
            "data set", got=name, expected="one of " + ", ".join(DISTRIBUTIONS), remedy="choose one of these"
        )
    return DISTRIBUTIONS[name]
