"""The forward process: noise ladders, and pairs (y_t, x_{t+1}) drawn from it.

The data x is first scaled and noised once, x_0 = a_0 x + sigma_0 e; then x_{t+1} = a_{t+1} x_t + sigma_{t+1} e with
a**2 + sigma**2 = 1 (equation 15). Energy t is the log-density of y_t = a_{t+1} x_t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.diffusion.noise import Noise, Purpose


@dataclass(frozen=True)
class NoiseLadder:
    """Scales and standard deviations of T + 1 noising steps, the first of which makes x_0 from the data.

    All tensors are float64, on the CPU until `to` moves them. Index t of `scale` and `std` belongs to the transition
    *into* x_t.
    """

    scale: Tensor
    """(T+1,) a_t."""
    std: Tensor
    """(T+1,) sigma_t."""
    cumulative_scale: Tensor
    """(T+1,) x_t = cumulative_scale_t x + cumulative_std_t e."""
    cumulative_std: Tensor
    """(T+1,)"""

    @classmethod
    def from_variances(cls, variances: Tensor) -> NoiseLadder:
        """The ladder whose transition variances sigma_t**2 are given, (T+1,) in (0, 1)."""
        keep = 1 - variances.double()
        cumulative = keep.cumprod(0)
        return cls(keep.sqrt(), variances.double().sqrt(), cumulative.sqrt(), (1 - cumulative).sqrt())

    @property
    def num_levels(self) -> int:
        """T, the number of energies."""
        return len(self.scale) - 1

    def to(self, device: torch.device) -> NoiseLadder:
        """The same ladder on another device, where a draw does not wait for copies from the host."""
        return NoiseLadder(
            self.scale.to(device), self.std.to(device), self.cumulative_scale.to(device), self.cumulative_std.to(device)
        )

    def signal_in_y(self, transition_scale: Tensor) -> Tensor:
        """(T,) factor of the data in y_t = transition_scale_t x_t.

        Args:
            transition_scale: (T,) float64 on the CPU.
        """
        return transition_scale * self.cumulative_scale[:-1]

    def noise_in_y(self, transition_scale: Tensor) -> Tensor:
        """(T,) standard deviation of the noise in y_t; argument as `signal_in_y`."""
        return transition_scale * self.cumulative_std[:-1]


def linear_ladder(num_levels: int, first_variance: float, last_variance: float) -> NoiseLadder:
    """A ladder of T = `num_levels` levels whose transition variances rise linearly, as printed in section 4."""
    return NoiseLadder.from_variances(
        torch.linspace(first_variance, last_variance, num_levels + 1, dtype=torch.float64)
    )


def composed_ladder(
    num_levels: int = 6, first_variance: float = 1e-4, last_variance: float = 0.02, base_steps: int = 1000
) -> NoiseLadder:
    """The released T6 ladder: `base_steps` linear steps cut into T + 1 segments, each composed into one transition.

    Segments end at base steps 0, s, 2s, ..., (T-1)s and the last one, with s = base_steps // (T + 4), which is 100 for
    T = 6: the top transition covers the long rest of the ladder, and x_T is white noise.

    Raises:
        ValueError: T is too large for the base ladder.
    """
    if not 1 <= num_levels < base_steps:
        raise ValueError(
            f"a composed ladder of {base_steps} base steps has 1 to {base_steps - 1} levels, got {num_levels}"
        )
    stride = max(1, base_steps // (num_levels + 4))
    keep = 1 - torch.linspace(first_variance, last_variance, base_steps, dtype=torch.float64)
    ends = [*(level * stride for level in range(num_levels)), base_steps - 1]
    cumulative = keep.cumprod(0)[ends]
    segments = torch.cat([cumulative[:1], cumulative[1:] / cumulative[:-1]])
    return NoiseLadder.from_variances(1 - segments)


def geometric_ladder(num_levels: int, first_noise_to_signal: float, last_noise_to_signal: float) -> NoiseLadder:
    """A ladder whose ratio cumulative_std**2 / cumulative_scale**2 grows by one factor from each x_t to the next.

    All levels are then equally hard to sample: from 1 / sigma_{t+1}**2 to that times this factor is the range that the
    curvature of log p(y_t | x_{t+1}) can have.

    Args:
        num_levels: T.
        first_noise_to_signal: the ratio of x_0.
        last_noise_to_signal: the ratio of x_T.
    """
    powers = torch.linspace(0, 1, num_levels + 1, dtype=torch.float64)
    ratio = first_noise_to_signal * (last_noise_to_signal / first_noise_to_signal) ** powers
    # cumulative_scale**2 is 1 / (1 + ratio); below x_0 there is no noise.
    below = torch.cat([torch.zeros(1, dtype=torch.float64), ratio[:-1]])
    return NoiseLadder.from_variances((ratio - below) / (1 + ratio))


@dataclass(frozen=True)
class Pairs:
    """A batch of (y_t, x_{t+1}) and the levels they were drawn at."""

    level: Tensor
    """(B,) int64, t."""
    y_pos: Tensor
    """(B, ...) y_t = a_{t+1} x_t."""
    x_noisy: Tensor
    """(B, ...) x_{t+1}."""
    score: Tensor
    """(B, ...) gradient of log p(x_{t+1} | x): -(x_{t+1} - cumulative_scale x) / cumulative_std**2."""
    y_score: Tensor
    """(B, ...) gradient of log p(y_t | x), at y_pos."""
    condition: Tensor | None = None
    """(B, size) labels; None for energies of images alone."""

    def opposite_y_pos(self, variance: Tensor) -> Tensor:
        """Another draw of y_t given x_{t+1} and x: y_pos mirrored at the mean of y_t given both.

        That mean is x_{t+1} + sigma**2 * score at levels whose transition scale is a_{t+1}.

        Args:
            variance: (B, 1, ...) sigma_{t+1}**2.
        """
        return 2 * (self.x_noisy + variance * self.score) - self.y_pos

    def standardised_y_pos(self, ladder: NoiseLadder) -> Tensor:
        """y_pos standardised by its mean and standard deviation given x_{t+1} and x: standard normal, (B, ...).

        That standard deviation is a_{t+1} cumulative_std_t sigma_{t+1} / cumulative_std_{t+1}; as for
        `opposite_y_pos`, the level's transition scale must be a_{t+1}.
        """
        std = ladder.std[1:]
        spread = ladder.scale[1:] * std * ladder.cumulative_std[:-1] / ladder.cumulative_std[1:]
        column = (-1,) + (1,) * (self.y_pos.dim() - 1)
        variance, spread = (
            values.to(self.y_pos.device, self.y_pos.dtype)[self.level].reshape(column)
            for values in (std.square(), spread)
        )
        return (self.y_pos - self.x_noisy - variance * self.score) / spread


def draw_levels(noise: Noise, sample_ids: Tensor, num_levels: int) -> Tensor:
    """t ~ Unif{0, ..., T-1} for each sample, (B,) int64 (Algorithm 1)."""
    return (noise.uniform(Purpose.LEVEL, sample_ids, 0, (0,), 1)[0, :, 0] * num_levels).long()


def draw_pairs(
    noise: Noise, sample_ids: Tensor, x: Tensor, level: Tensor, ladder: NoiseLadder, transition_scale: Tensor
) -> Pairs:
    """Pairs (y_t, x_{t+1}): x_t drawn from its marginal, then one transition.

    Args:
        noise: source of the normals.
        sample_ids: (B,) int64, keys of the noise.
        x: (B, ...) data in [-1, 1].
        level: (B,) int64, t.
        ladder: the forward process.
        transition_scale: (T,) factor from x_t to y_t: a_{t+1}, or 1 at a marginal top level.
    """
    column = (-1,) + (1,) * (x.dim() - 1)

    def at(values: Tensor, index: Tensor) -> Tensor:
        return values.to(device=x.device, dtype=x.dtype)[index].reshape(column)

    shape = x.shape[1:]
    base = noise.normal(Purpose.BASE, sample_ids, level, (0,), shape)[0].to(x.dtype)
    fresh = noise.normal(Purpose.TRANSITION, sample_ids, level, (0,), shape)[0].to(x.dtype)
    x_t = at(ladder.cumulative_scale, level) * x + at(ladder.cumulative_std, level) * base
    x_noisy = at(ladder.scale, level + 1) * x_t + at(ladder.std, level + 1) * fresh
    score = (at(ladder.cumulative_scale, level + 1) * x - x_noisy) / at(ladder.cumulative_std, level + 1).square()
    y_scale = at(transition_scale, level)
    y_score = -base / (y_scale * at(ladder.cumulative_std, level))
    return Pairs(level=level, y_pos=y_scale * x_t, x_noisy=x_noisy, score=score, y_score=y_score)
