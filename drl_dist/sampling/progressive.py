"""Progressive sampling (Algorithm 2), from white noise down the ladder of conditional densities."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from drl_dist.diffusion.noise import Noise, Purpose
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad, RawAtLevel, conditional_density, scaled_density
from drl_dist.mcmc.kernel import Kernel, KeyedChainNoise
from drl_dist.mcmc.langevin import LeimkuhlerMatthews, UnadjustedLangevin
from drl_dist.mcmc.normal_approximation import NormalApproximation
from drl_dist.sampling.procedure import Chain, Once, Procedure, Stage, stages_of
from drl_dist.sampling.tweedie import Tweedie


@dataclass(frozen=True)
class ProgressiveSampler:
    """Algorithm 2.

    Args:
        levels: scales and step sizes of the levels, (T,).
        num_chain_steps: K, chain steps per level, or T numbers, one for each level; 0 draws once, from `start`, or
            without one from the normal approximation, which all levels have or none.
        noise_scale: factor on the noise of the chains, and of their starts.
        start: where chains start; None for x_{t+1}.
        end: what turns y_0 into an image; None for a division by its scale, which leaves the noise of x_0 in it.
        averages_noise: chains are those of `LeimkuhlerMatthews`, not of `UnadjustedLangevin`.
        own_kernel: (density, step size (B,), noise scale) -> kernel of the chains, instead of either.
    """

    levels: Levels
    num_chain_steps: int | tuple[int, ...]
    noise_scale: float
    start: Tweedie | None = None
    end: Tweedie | None = None
    averages_noise: bool = False
    own_kernel: Callable[..., Kernel[Any]] | None = None

    @cached_property
    def num_draws(self) -> tuple[int, ...]:
        """Transitions at each level, after the start; T numbers."""
        fewest = 1 if self.start is None else 0
        return tuple(max(fewest, count) for count in steps_by_level(self.num_chain_steps, self.levels.num_levels))

    @property
    def num_gradients(self) -> int:
        """Gradients that `sample` computes per image."""
        starts = 0 if self.start is None else self.levels.num_levels - 1
        return sum(self.num_draws) + starts + (self.end is not None)

    def sample(self, raw_at: RawAtLevel, noise: Noise, sample_ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Generated x_0, or images without its noise if there is an `end`.

        Args:
            raw_at: the network.
            noise: its numbers for image i depend on i alone, so images do not depend on their batch.
            sample_ids: (B,) int64.
            shape: shape of one image, (C, H, W).

        Returns:
            float32 (B, C, H, W), about in [-1, 1].
        """
        return self.sample_levels(raw_at, noise, sample_ids, shape, keep=(0,))[-1]

    def sample_levels(
        self,
        raw_at: RawAtLevel,
        noise: Noise,
        sample_ids: Tensor,
        shape: tuple[int, ...],
        *,
        keep: Collection[int] | None = None,
    ) -> Tensor:
        """All stages x_T, x_{T-1}, ..., x_0, or only the x_t of the kept t: float32 (kept, B, C, H, W).

        Args:
            keep: the kept t, from 0 to T; all by default. Other arguments as `sample`.
        """
        keep = range(self.levels.num_levels + 1) if keep is None else keep
        return torch.stack([x for t, x in self.stages(raw_at, noise, sample_ids, shape) if t in keep])

    def stages(
        self, raw_at: RawAtLevel, noise: Noise, sample_ids: Tensor, shape: tuple[int, ...]
    ) -> Iterator[tuple[int, Tensor]]:
        """t and x_t, float32 (B, C, H, W), from T down to 0, each as soon as it is drawn; arguments as `sample`."""
        return stages_of(self.procedure(noise, sample_ids, shape), raw_at)

    def procedure(self, noise: Noise, sample_ids: Tensor, shape: tuple[int, ...]) -> Procedure:
        """The parts of which `sample` consists; arguments as of `sample`."""
        num_levels = self.levels.num_levels
        x = noise.normal(Purpose.PRIOR, sample_ids, 0, (0,), shape)[0]
        here = self._on(x.device, x.dtype)
        yield Stage(num_levels, x)
        for t in reversed(range(num_levels)):
            level, y = torch.full_like(sample_ids, t), x
            if here.start is not None:
                normal = self.noise_scale * noise.normal(Purpose.SAMPLE_START, sample_ids, level, (0,), shape)[0]
                is_top = t == num_levels - 1
                y = yield Once(partial(here.start.draw, x_noisy=x, level=level, normal=normal, only_top=is_top))
            if num_draws := self.num_draws[t]:
                numbers = KeyedChainNoise(noise, Purpose.SAMPLE_CHAIN, sample_ids, level, shape)
                before = noise_before(self.averages_noise, noise, Purpose.SAMPLE_BEFORE, sample_ids, level, shape)
                y = yield Chain(
                    level, partial(here.kernel, x_noisy=x, level=level, before=before), y, numbers, num_draws
                )
            if t == 0 and here.end is not None:
                x = yield Once(partial(here.end.clean_at, level=level, y=y))
            else:
                x = y / self.levels.transition_scale[t]
            yield Stage(t, x)

    def _on(self, device: torch.device, dtype: torch.dtype) -> ProgressiveSampler:
        """The same with its tables on a device: copied once, and not at each level, where the device would wait."""
        start, end = (None if one is None else one.to(device, dtype) for one in (self.start, self.end))
        return replace(self, levels=self.levels.to(device, dtype), start=start, end=end)

    def kernel(
        self, raw_and_grad: LogDensityAndGrad, x_noisy: Tensor, level: Tensor, before: Tensor | None = None
    ) -> Kernel[Any]:
        """The kernel that draws y_t given x_{t+1}.

        Args:
            raw_and_grad: the network at these levels.
            x_noisy: (B, ...) x_{t+1}.
            level: (B,) int64, t.
            before: from `noise_before`.
        """
        here = self.levels.to(x_noisy.device, x_noisy.dtype).at(level)
        marginal = scaled_density(raw_and_grad, here.energy_scale)
        if self.num_chain_steps == 0:
            return NormalApproximation(marginal, here.recovery_precision.rsqrt(), self.noise_scale, here.normal_std)
        density = conditional_density(marginal, x_noisy, here.recovery_precision)
        if self.own_kernel is not None:
            return self.own_kernel(density, here.step_size, self.noise_scale)
        return langevin(density, here.step_size, self.noise_scale, before)


def noise_before(
    averages_noise: bool,
    noise: Noise,
    purpose: Purpose,
    sample_ids: Tensor,
    level: Tensor | int,
    shape: tuple[int, ...],
    number: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor | None:
    """The normals before a chain's first step, `(B, *shape)`, if its kernel uses any.

    Args:
        averages_noise: as of `ProgressiveSampler`.
        noise, purpose, sample_ids, level, shape: as of `Noise.normal`.
        number: of the chain, where there are several at a level.
        dtype: of the normals.
    """
    if not averages_noise:
        return None
    return noise.normal(purpose, sample_ids, level, (number,), shape)[0].to(dtype)


def langevin(
    density: LogDensityAndGrad, step_size: Tensor, noise_scale: float, before: Tensor | None
) -> UnadjustedLangevin | LeimkuhlerMatthews:
    """The kernel that goes with what `noise_before` gave; other arguments as of `UnadjustedLangevin`."""
    if before is None:
        return UnadjustedLangevin(density, step_size, noise_scale)
    return LeimkuhlerMatthews(density, step_size, noise_scale, before)


def steps_by_level(num_chain_steps: int | tuple[int, ...], num_levels: int) -> tuple[int, ...]:
    """K of each level, T numbers.

    Args:
        num_chain_steps: one number for all levels, or T.
        num_levels: T.

    Raises:
        ValueError: there are more numbers than levels, or fewer.
    """
    steps = (num_chain_steps,) * num_levels if isinstance(num_chain_steps, int) else num_chain_steps
    if len(steps) != num_levels:
        raise ValueError(f"{len(steps)} numbers of chain steps for {num_levels} levels")
    return steps


def shown_levels(num_levels: int, count: int = 7) -> tuple[int, ...]:
    """At most `count` of the levels T to 0, evenly spread and including both ends, for a picture of the stages.

    The default is enough for all seven stages of the released ladder.
    """
    shown = min(count, num_levels + 1)
    return tuple(round(num_levels * (shown - 1 - place) / (shown - 1)) for place in range(shown))
