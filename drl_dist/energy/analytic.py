"""Analytic log-densities with known normalising constants, the reference for everything that is learned or estimated.

These distributions keep their form under the forward process, so every marginal, conditional and normalising constant
of every noise level has a closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from drl_dist.diffusion.ladder import NoiseLadder


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std**2 I) over tensors of any shape.

    Args:
        mean: mean, broadcastable to one sample.
        std: standard deviation, the same for every coordinate.
    """

    mean: Tensor
    std: float

    def log_density(self, y: Tensor) -> Tensor:
        """Unnormalised: -|y - mean|**2 / (2 std**2), (B,)."""
        return -(y - self.mean).square().flatten(1).sum(1) / (2 * self.std**2)

    def log_density_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density (B,) and its gradient (B, ...)."""
        return self.log_density(y), -(y - self.mean) / self.std**2

    def log_z(self, num_dims: int) -> float:
        """Logarithm of the integral of exp(log_density) over `num_dims` coordinates."""
        return 0.5 * num_dims * math.log(2 * math.pi * self.std**2)

    def affine(self, scale: float, noise_std: float) -> Gaussian:
        """The distribution of scale * x + noise_std * e for x of this distribution."""
        return Gaussian(self.mean * scale, math.hypot(self.std * scale, noise_std))

    def level(self, ladder: NoiseLadder, t: int, transition_scale: float | None = None) -> Gaussian:
        """The marginal of y_t = transition_scale * x_t (by default a_{t+1} x_t) for data x of this distribution."""
        scale = float(ladder.scale[t + 1]) if transition_scale is None else transition_scale
        return self.affine(float(ladder.cumulative_scale[t]), float(ladder.cumulative_std[t])).affine(scale, 0.0)

    def posterior(self, x_noisy: Tensor, noise_std: float) -> tuple[Tensor, float]:
        """Mean and std of y from this distribution, given x_noisy = y + noise_std * e (equation 5)."""
        precision = self.std**-2 + noise_std**-2
        mean = (self.mean / self.std**2 + x_noisy / noise_std**2) / precision
        return mean, precision**-0.5


@dataclass(frozen=True)
class GaussianMixture:
    """Equally weighted N(means_k, std**2 I).

    Args:
        means: (components, D).
        std: standard deviation of every component.
    """

    means: Tensor
    std: float

    def log_density(self, y: Tensor) -> Tensor:
        """Unnormalised log-density of y (B, D): log sum_k exp(-|y - mean_k|**2 / (2 std**2)), (B,)."""
        return torch.logsumexp(-torch.cdist(y, self.means).square() / (2 * self.std**2), dim=1)

    def log_density_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density (B,) and its gradient (B, D)."""
        exponent = -torch.cdist(y, self.means).square() / (2 * self.std**2)
        pulled = torch.softmax(exponent, dim=1) @ self.means
        return torch.logsumexp(exponent, dim=1), (pulled - y) / self.std**2

    def log_z(self) -> float:
        """Logarithm of the integral of exp(log_density)."""
        components, num_dims = self.means.shape
        return math.log(components) + 0.5 * num_dims * math.log(2 * math.pi * self.std**2)

    def affine(self, scale: float, noise_std: float) -> GaussianMixture:
        """The distribution of scale * x + noise_std * e for x of this distribution."""
        return GaussianMixture(self.means * scale, math.hypot(self.std * scale, noise_std))


@dataclass(frozen=True, eq=False)
class CorrelatedGaussian:
    """N(mean, covariance) over tensors of any shape with D numbers.

    Args:
        mean: (D,).
        covariance: (D, D).
    """

    mean: Tensor
    covariance: Tensor

    @cached_property
    def precision(self) -> Tensor:
        """(D, D) inverse of the covariance."""
        return torch.linalg.inv(self.covariance)

    def log_density(self, y: Tensor) -> Tensor:
        """Unnormalised: -(y - mean)^T precision (y - mean) / 2, (B,)."""
        return self.log_density_and_grad(y)[0]

    def log_density_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density (B,) and its gradient (B, ...)."""
        centred = y.flatten(1) - self.mean
        gradient = -centred @ self.precision
        return 0.5 * (centred * gradient).sum(1), gradient.reshape(y.shape)

    def log_z(self) -> float:
        """Logarithm of the integral of exp(log_density)."""
        return 0.5 * (len(self.mean) * math.log(2 * math.pi) + float(torch.logdet(self.covariance)))

    def affine(self, scale: float, noise_std: float) -> CorrelatedGaussian:
        """The distribution of scale * x + noise_std * e for x of this distribution."""
        noise = noise_std**2 * torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
        return CorrelatedGaussian(scale * self.mean, scale**2 * self.covariance + noise)

    def level(self, ladder: NoiseLadder, t: int, transition_scale: float | None = None) -> CorrelatedGaussian:
        """The marginal of y_t = transition_scale * x_t (by default a_{t+1} x_t) for data x of this distribution."""
        scale = float(ladder.scale[t + 1]) if transition_scale is None else transition_scale
        return self.affine(float(ladder.cumulative_scale[t]), float(ladder.cumulative_std[t])).affine(scale, 0.0)

    def given(self, projection: Tensor, value: Tensor, noise_std: float = 0.0) -> CorrelatedGaussian:
        """The distribution of x given that projection x + noise_std e = value.

        Args:
            projection: (M, D) of full rank.
            value: (M,).
            noise_std: standard deviation of e, (M,) standard normal.
        """
        cross = self.covariance @ projection.T
        noise = noise_std**2 * torch.eye(len(value), dtype=value.dtype, device=value.device)
        gain = torch.linalg.solve(projection @ cross + noise, cross.T).T
        return CorrelatedGaussian(self.mean + gain @ (value - projection @ self.mean), self.covariance - gain @ cross.T)
