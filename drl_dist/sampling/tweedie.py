"""Tweedie's formula: the mean of what a noisy image was, from the gradient of the noisy image's log-density."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad, RawAtLevel, scaled_density
from drl_dist.mcmc.kernel import column


@dataclass(frozen=True)
class Tweedie:
    """Means of y_t given x_{t+1}, where chains can start, and of the image given y_0, where the last one can end.

    Args:
        levels: scales of the levels, (T,).
        ladder: the forward process.
    """

    levels: Levels
    ladder: NoiseLadder

    def to(self, device: torch.device, dtype: torch.dtype) -> Tweedie:
        """The same on another device, for `draw` and `clean` of images of this type."""
        return Tweedie(self.levels.to(device, dtype), self.ladder.to(device))

    def draw(
        self, raw_at: RawAtLevel, x_noisy: Tensor, level: Tensor, normal: Tensor, *, only_top: bool = False
    ) -> Tensor:
        """A draw around the mean of y_t given x_{t+1}, (B, ...); one gradient.

        With a, sigma and s of the transition and b = transition_scale_t / a_{t+1}, which is 1 but at a marginal top,

            y = b (x_{t+1} + sigma_{t+1}**2 grad log p(x_{t+1}))
                + transition_scale_t cumulative_std_t sigma_{t+1} / cumulative_std_{t+1} e

        The first term is the mean, the second has the spread of y_t given both x_{t+1} and the data: what is still
        unknown of y_t is how the data vary. The gradient is that of the level above, and -x_T above the topmost.

        Args:
            raw_at: the network.
            x_noisy: (B, ...) x_{t+1}.
            level: (B,) int64, t.
            normal: (B, ...) e, standard normal or scaled.
            only_top: every t is T - 1, and no gradient is needed.
        """
        ladder, values = self.ladder, self._values
        scale, transition = values(self.levels.transition_scale, level, normal), values(ladder.scale, level + 1, normal)
        std, total = values(ladder.std, level + 1, normal), values(ladder.cumulative_std, level + 1, normal)
        is_white = only_top or self.levels.num_levels == 1
        score = -x_noisy if is_white else self._score_above(raw_at, x_noisy, level)
        spread = scale * values(ladder.cumulative_std, level, normal) * std / total
        return scale / transition * (x_noisy + std.square() * score) + spread * normal

    def draw_between(self, raw_at: RawAtLevel, x_noisy: Tensor, level: int, noise_std: float, normal: Tensor) -> Tensor:
        """A draw around the mean of y_t given x + noise_std e, (B, ...), whose noise is between levels; two gradients.

        No level has the density of x_noisy. Its score is taken between those of levels t and t + 1 at x_noisy, with
        weights that are linear in 1 / noise**2. So the mean is exact in directions in which the data vary much less,
        or much more, than the noise.

        Args:
            raw_at: the network.
            x_noisy: (B, ...) in units of the data.
            level: t, the highest level with less noise.
            noise_std: in units of the data, between the noise of the levels t and t + 1.
            normal: (B, ...) standard normal or scaled.
        """
        signal = self.ladder.cumulative_scale
        below, above = (float(self.ladder.cumulative_std[t] / signal[t]) for t in (level, level + 1))
        share = (noise_std**-2 - above**-2) / (below**-2 - above**-2)
        # In units of the data, the score of x_{t'} / signal_{t'} is signal_{t'} times that of x_{t'}.
        here, further = (
            float(signal[t]) * self._score(raw_at, float(signal[t]) * x_noisy, t) for t in (level, level + 1)
        )
        mean = x_noisy + (noise_std**2 - below**2) * (share * here + (1 - share) * further)
        spread = below * (noise_std**2 - below**2) ** 0.5 / noise_std
        return float(self.levels.transition_scale[level] * signal[level]) * (mean + spread * normal)

    def clean(self, raw_and_grad: LogDensityAndGrad, y: Tensor) -> Tensor:
        """The mean of the image x given y_0, (B, ...); one gradient.

        Args:
            raw_and_grad: the network at level 0.
            y: (B, ...) y_0 = transition_scale_0 (cumulative_scale_0 x + cumulative_std_0 e).
        """
        level = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        scale = self._values(self.levels.transition_scale, level, y)
        noise = scale * self._values(self.ladder.cumulative_std, level, y)
        energy_scale = self._values(self.levels.energy_scale, level, y).flatten()
        _, gradient = scaled_density(raw_and_grad, energy_scale)(y)
        return (y + noise.square() * gradient) / (scale * self._values(self.ladder.cumulative_scale, level, y))

    def clean_at(self, raw_at: RawAtLevel, level: Tensor, y: Tensor) -> Tensor:
        """`clean` with the network at levels (B,), all 0."""
        return self.clean(raw_at(level), y)

    def _score(self, raw_at: RawAtLevel, x: Tensor, level: int) -> Tensor:
        """grad log p(x_t), (B, ...), of any t from 0 to T."""
        if level == self.levels.num_levels:
            return -x
        scale, energy_scale = float(self.levels.transition_scale[level]), self.levels.energy_scale[level]
        levels = torch.full((len(x),), level, dtype=torch.int64, device=x.device)
        _, gradient = scaled_density(raw_at(levels), energy_scale.to(x.device, x.dtype))(scale * x)
        return scale * gradient

    def _score_above(self, raw_at: RawAtLevel, x: Tensor, level: Tensor) -> Tensor:
        """grad log p(x_{t+1}), (B, ...): energy t + 1 is the log-density of a multiple of x_{t+1}."""
        top = self.levels.num_levels - 1
        above = (level + 1).clamp(max=top)
        scale = self._values(self.levels.transition_scale, above, x)
        energy_scale = self._values(self.levels.energy_scale, above, x).flatten()
        _, gradient = scaled_density(raw_at(above), energy_scale)(scale * x)
        # There is no energy above the topmost: x_T is white noise. Its gradient is computed, and not used.
        return torch.where(column(level == top, x), -x, scale * gradient)

    @staticmethod
    def _values(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
        return column(values.to(like.device, like.dtype)[index], like)
