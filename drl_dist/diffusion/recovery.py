"""Recovery likelihood: the conditional density p(y_t | x_{t+1}) and the losses that train it (section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

LogDensityAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
"""y (B, ...) -> log-density (B,) in nats, up to a constant, and its gradient (B, ...)."""
RawAtLevel = Callable[[Tensor], LogDensityAndGrad]
"""Levels (B,) -> raw output and its gradient as a function of y, with everything that y does not change precomputed."""


@dataclass(frozen=True)
class Levels:
    """Scales of each noise level's density, chain and loss; every tensor is (T,) or, gathered by sample, (B,)."""

    transition_scale: Tensor
    """y_t = transition_scale * x_t: a_{t+1}, or 1 at a marginal top level."""
    recovery_precision: Tensor
    """1 / sigma_{t+1}**2, the weight of the quadratic term; 0 at a marginal top level."""
    step_size: Tensor
    """delta_t of Langevin dynamics: c_t b sigma_{t+1} (section 3.5), or by the largest curvature of the conditional."""
    energy_scale: Tensor
    """log-density = energy_scale * raw network output."""
    loss_weight: Tensor
    """Weight of a sample's raw difference in the loss."""
    noise_precision: Tensor | None = None
    """What the known noise in y_t adds to the precision of a draw of the normal approximation; None for nothing."""

    @property
    def num_levels(self) -> int:
        """T."""
        return len(self.step_size)

    @property
    def normal_std(self) -> Tensor:
        """Standard deviation of a draw of the normal approximation: sigma_{t+1}, or with the noise's precision that of
        y_t given x_{t+1} and the data.
        """
        precision = self.recovery_precision
        return (precision if self.noise_precision is None else precision + self.noise_precision).rsqrt()

    def shortened(self, curvature: Tensor) -> Levels:
        """Steps that stay the same fraction of the largest curvature where that was measured to exceed its bound.

        Args:
            curvature: (T,) largest curvature over the bound that the step sizes were made for.
        """
        return replace(self, step_size=self.step_size / curvature.to(self.step_size).clamp(min=1).sqrt())

    def at(self, level: Tensor) -> Levels:
        """The values at each sample's level, (B,)."""
        return self._changed(lambda values: values[level])

    def to(self, device: torch.device, dtype: torch.dtype) -> Levels:
        """The same values on another device, in another dtype."""
        return self._changed(lambda values: values.to(device, dtype))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Levels:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return replace(self, **{name: change(getattr(self, name)) for name in given})


def scaled_density(raw_and_grad: LogDensityAndGrad, energy_scale: Tensor) -> LogDensityAndGrad:
    """f = energy_scale * raw: turns a network's raw output into a log-density.

    Args:
        raw_and_grad: the raw output (B,) and its gradient.
        energy_scale: (B,).
    """

    def density(y: Tensor) -> tuple[Tensor, Tensor]:
        raw, gradient = raw_and_grad(y)
        return raw * energy_scale, gradient * _column(energy_scale, y)

    return density


def conditional_density(density: LogDensityAndGrad, x_noisy: Tensor, precision: Tensor) -> LogDensityAndGrad:
    """log p(y | x_noisy) = f(y) - |x_noisy - y|**2 * precision / 2, up to a constant (equations 5 and 16).

    Args:
        density: f, the marginal log-density of y.
        x_noisy: (B, ...) x_{t+1}.
        precision: (B,) 1 / sigma_{t+1}**2; 0 switches the recovery term off.
    """
    weight = _column(precision, x_noisy)

    def conditional(y: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = density(y)
        residual = x_noisy - y
        return value - 0.5 * precision * residual.square().flatten(1).sum(1), gradient + weight * residual

    return conditional


def recovery_loss(raw_pos: Tensor, raw_neg: Tensor, loss_weight: Tensor) -> Tensor:
    """-(f(y_pos) - f(y_neg)), weighted and averaged over the batch; its gradient is that of Algorithm 1.

    Args:
        raw_pos: (B,) raw output at the data's y_t.
        raw_neg: (B,) raw output at the end of the chain.
        loss_weight: (B,).
    """
    return -((raw_pos - raw_neg) * loss_weight).mean()


def matching_loss(gradient: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared distance between a log-density's gradient and its target, weighted and averaged over the batch.

    With target (y_pos - x_noisy) / sigma**2 and weight sigma**2 it is minus the log-likelihood of the normal
    approximation N(y_pos; x_noisy + sigma**2 grad f, sigma**2), up to a constant (equation 37); with the mean of that
    target given the data x it is denoising score matching (equation 14), since that mean is the score of x_noisy
    given x.

    Args:
        gradient: (B, ...) grad f at x_noisy, or wherever the target belongs to.
        target: (B, ...).
        weight: (B,).
    """
    return 0.5 * ((gradient - target).square().flatten(1).sum(1) * weight).mean()


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape((-1,) + (1,) * (like.dim() - 1))
