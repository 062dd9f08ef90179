"""Posterior sampling of images: inpainting (figure 6), super-resolution and denoising (section 4.1).

The learned model is the prior. The observed part of an image x is an orthogonal projection P x: some of its pixels, or
its block means. White noise is white in P and in the rest, so the observed part of x_t is
P (cumulative_scale_t x + cumulative_std_t e), and the chain of level t draws the rest of y_t given P y_t and x_{t+1}.

**Rounds.** One pass down the ladder, as the paper describes, does not draw the unobserved rest from its distribution
given P x: the rest of x_{t+1} was drawn before P x_t was known, and the recovery term ties the chain to it. With more
rounds, x_{t+1} is drawn again from x_t by the forward process and the chain is run again. These are the two halves of a
Gibbs sampler, which converges to the distribution of the rest of x_t given P x_t from any start. An example: four
Gaussian pixels in a row, neighbours correlated by .9, the first two observed. With one round of T6 the means of the
others are 15 and 23 % too near to 0, and their standard deviations 11 % too large; with four rounds, 1 and 1.5 %, and
.3 %.

**Fresh noise at every level.** Given P y_t, the distribution of the rest of y_t depends on x_{t+1} only through the
rest of x_{t+1}. So no chain sees the observed parts of two levels together, and these need not lie on one path of the
forward process. Independent draws are simpler, and no worse: in the example, a path would leave standard deviations
12.5 % too large after one round, and the same as independent draws from two rounds on.

**Start at the mean.** Where the chains of sampling start around the mean of y_t given x_{t+1}, so do these: few
steps from x_{t+1} would leave standard deviations up to half as large again (docs/editing.md).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.noise import Noise, Purpose
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad, conditional_density, scaled_density
from drl_dist.mcmc.kernel import ChainNoise, Kernel, KeyedChainNoise, StepNoise
from drl_dist.mcmc.normal_approximation import NormalApproximation
from drl_dist.sampling.procedure import Chain, Once, Procedure, Stage, image_of
from drl_dist.sampling.progressive import RawAtLevel, langevin, noise_before, steps_by_level
from drl_dist.sampling.tweedie import Tweedie


class Observation(Protocol):
    """An orthogonal projection P: which part of an image is observed."""

    def keep(self, y: Tensor, known: Tensor) -> Tensor:
        """P known + (1 - P) y, (B, C, H, W): y with its observed part replaced."""
        ...


@dataclass(frozen=True, eq=False)
class ObservedPixels:
    """Some of the pixels; they are kept bit for bit.

    Args:
        is_observed: bool, broadcastable to (B, C, H, W).
    """

    is_observed: Tensor

    def keep(self, y: Tensor, known: Tensor) -> Tensor:
        """See `Observation.keep`."""
        return torch.where(self.is_observed, known, y)


@dataclass(frozen=True)
class ObservedBlockMeans:
    """The mean of every square block of every channel: the image at a lower resolution.

    Args:
        size: height and width of a block, which must divide those of the image.
    """

    size: int

    def keep(self, y: Tensor, known: Tensor) -> Tensor:
        """See `Observation.keep`; kept up to rounding."""
        return y + enlarge(functional.avg_pool2d(known - y, self.size), self.size)


@dataclass(frozen=True)
class PosteriorSampler:
    """Draws x_0 given an observation of it.

    Args:
        levels: scales and step sizes of the levels, (T,).
        ladder: the forward process.
        num_chain_steps: K, chain steps of every round, or T numbers of at least 1, one for each level; 0 draws once
            from the normal approximation.
        noise_scale: factor on the Langevin noise.
        num_rounds: times that each level's chain is run, each time from a new draw of x_{t+1}; 1 is the paper's
            procedure. A marginal top level, which no recovery term ties to x_T, has one round.
        start: where the chains of every round start; None for x_{t+1}.
        end: what turns y_0 into an image; None for a division by its scale, which leaves the noise of x_0 in it.
        averages_noise: chains are those of `LeimkuhlerMatthews`, not of `UnadjustedLangevin`.
        own_kernel: as of `ProgressiveSampler`.
    """

    levels: Levels
    ladder: NoiseLadder
    num_chain_steps: int | tuple[int, ...]
    noise_scale: float
    num_rounds: int = 1
    start: Tweedie | None = None
    end: Tweedie | None = None
    averages_noise: bool = False
    own_kernel: Callable[..., Kernel[Any]] | None = None

    def complete(
        self, raw_at: RawAtLevel, noise: Noise, sample_ids: Tensor, x: Tensor, observation: Observation
    ) -> Tensor:
        """Images that agree with what is observed of x: inpainting and super-resolution.

        Args:
            raw_at: the network.
            noise: its numbers for image i depend on i alone, so images do not depend on their batch.
            sample_ids: (B,) int64; another id gives another completion.
            x: (B, C, H, W) in [-1, 1]; only its observed part is used.
            observation: which part is observed.

        Returns:
            float32 (B, C, H, W), about in [-1, 1]; the observed part is that of x itself, without noise.
        """
        return image_of(self.completion(noise, sample_ids, x, observation), raw_at)

    def completion(self, noise: Noise, sample_ids: Tensor, x: Tensor, observation: Observation) -> Procedure:
        """The parts of which `complete` consists; arguments as there."""
        shape = tuple(x.shape[1:])
        y = state = noise.normal(Purpose.PRIOR, sample_ids, 0, (0,), shape)[0].to(x.dtype)
        yield Stage(self.levels.num_levels, state)
        for t in reversed(range(self.levels.num_levels)):
            fresh = noise.normal(Purpose.OBSERVED, sample_ids, t, (0,), shape)[0].to(x.dtype)
            known = float(self.ladder.cumulative_scale[t]) * x + float(self.ladder.cumulative_std[t]) * fresh
            here = self._at_level(sample_ids, t, x)
            for number in range(self._rounds(t)):
                if number > 0:
                    again = noise.normal(Purpose.RENOISE, sample_ids, t, (number,), shape)[0].to(x.dtype)
                    state = float(self.ladder.scale[t + 1]) * state + float(self.ladder.std[t + 1]) * again
                start = yield from self._start(noise, sample_ids, t, state, number)
                y = yield self._recovery(here, noise, sample_ids, t, state, start, number, (observation, known))
                # Exactly the observed part, which scaling and rounding would change.
                state = observation.keep(y / float(self.levels.transition_scale[t]), known)
            if t > 0:
                yield Stage(t, state)
        image = yield Once(partial(self._image, sample_ids=sample_ids, y=y))
        yield Stage(0, observation.keep(image, x))

    def denoise(
        self, raw_at: RawAtLevel, noise: Noise, sample_ids: Tensor, x_noisy: Tensor, noise_std: float
    ) -> Tensor:
        """Clean images of which x_noisy = x + noise_std e is a noisy version, e standard normal.

        The noise lies between two levels: t = `start_level` is the highest with less noise. Scaled to level t, x_noisy
        is x_t with further noise of a known standard deviation, less than that of a transition, and a recovery term
        with that standard deviation replaces the transition's. So no information is lost, as it would be by adding
        noise up to the next level. From x_t, Algorithm 2 continues as usual.

        Args:
            raw_at: the network.
            noise: its numbers for image i depend on i alone.
            sample_ids: (B,) int64; another id gives another clean image.
            x_noisy: (B, C, H, W), not clipped.
            noise_std: standard deviation of the noise in each pixel, in units of x.

        Returns:
            float32 (B, C, H, W), about in [-1, 1].

        Raises:
            ValueError: there is less noise than at level 0, or more than in x_T.
        """
        return image_of(self.denoising(noise, sample_ids, x_noisy, noise_std), raw_at)

    def denoising(self, noise: Noise, sample_ids: Tensor, x_noisy: Tensor, noise_std: float) -> Procedure:
        """The parts of which `denoise` consists; arguments and errors as there. Its first stage is x_noisy, scaled to
        `start_level`, as that of the level above."""
        first = self.start_level(noise_std)
        scale, transition = float(self.ladder.cumulative_scale[first]), float(self.levels.transition_scale[first])
        further = ((scale * noise_std) ** 2 - float(self.ladder.cumulative_std[first]) ** 2) ** 0.5
        y = state = transition * scale * x_noisy
        yield Stage(first + 1, state)
        for t in reversed(range(first + 1)):
            here = self._at_level(sample_ids, t, x_noisy)
            if t == first:
                start = state
                if self.start is not None:
                    normal = self._start_noise(noise, sample_ids, t, 0, state)
                    draw = self.start.draw_between
                    start = yield Once(partial(draw, x_noisy=x_noisy, level=t, noise_std=noise_std, normal=normal))
                std = transition * further
                # Step sizes are proportional to the transition's standard deviation (section 3.5).
                ratio = min(1.0, std / float(self.ladder.std[t + 1]))
                here = replace(
                    here,
                    recovery_precision=torch.full_like(here.recovery_precision, std**-2),
                    step_size=here.step_size * ratio,
                )
            else:
                start = yield from self._start(noise, sample_ids, t, state, 0)
            y = yield self._recovery(here, noise, sample_ids, t, state, start, 0, None)
            state = y / float(self.levels.transition_scale[t])
            if t > 0:
                yield Stage(t, state)
        image = yield Once(partial(self._image, sample_ids=sample_ids, y=y))
        yield Stage(0, image)

    def start_level(self, noise_std: float) -> int:
        """The highest level whose x_t, scaled to the size of the data, has less noise than `noise_std`.

        Raises:
            ValueError: there is less noise than at level 0, or more than in x_T.
        """
        smallest, largest = self.noise_range
        if not smallest < noise_std < largest:
            raise ValueError(f"noise must have a standard deviation between {smallest} and {largest}, got {noise_std}")
        return int((self._noise_to_signal < noise_std).sum()) - 1

    @property
    def noise_range(self) -> tuple[float, float]:
        """Lower and upper bound of the noise that `denoise` accepts: standard deviations in units of the data."""
        return float(self._noise_to_signal[0]), float(self._noise_to_signal[-1])

    def num_gradients(self, noise_std: float | None = None) -> int:
        """Gradients that `complete` computes per image or, at this standard deviation, `denoise`."""
        last = int(self.end is not None)
        if noise_std is not None:
            first = self.start_level(noise_std)
            # The first start is between two levels, of which the topmost needs no gradient.
            starts = 0 if self.start is None else first + (1 if first == self.levels.num_levels - 1 else 2)
            return sum(self.num_draws[: first + 1]) + starts + last
        each = 0 if self.start is None else 1
        top = self.levels.num_levels - 1
        return last + sum((draws + each * (t < top)) * self._rounds(t) for t, draws in enumerate(self.num_draws))

    @cached_property
    def num_draws(self) -> tuple[int, ...]:
        """Transitions of each level in every round; T numbers."""
        return tuple(max(1, count) for count in steps_by_level(self.num_chain_steps, self.levels.num_levels))

    @property
    def _noise_to_signal(self) -> Tensor:
        """(T+1,) noise of x_t as a multiple of the data's scale."""
        return self.ladder.cumulative_std / self.ladder.cumulative_scale

    def _rounds(self, t: int) -> int:
        return self.num_rounds if float(self.levels.recovery_precision[t]) > 0 else 1

    def _at_level(self, sample_ids: Tensor, t: int, like: Tensor) -> Levels:
        """The level's scales, (B,)."""
        return self.levels.to(like.device, like.dtype).at(torch.full_like(sample_ids, t))

    def _start(
        self, noise: Noise, sample_ids: Tensor, t: int, x_noisy: Tensor, number: int
    ) -> Generator[Once, Tensor, Tensor]:
        """Where the chain of round `number` of a level starts, before its observed part is put in."""
        if self.start is None:
            return x_noisy
        normal = self._start_noise(noise, sample_ids, t, number, x_noisy)
        is_top = t == self.levels.num_levels - 1
        level = torch.full_like(sample_ids, t)
        return (yield Once(partial(self.start.draw, x_noisy=x_noisy, level=level, normal=normal, only_top=is_top)))

    def _start_noise(self, noise: Noise, sample_ids: Tensor, t: int, number: int, like: Tensor) -> Tensor:
        normal = noise.normal(Purpose.SAMPLE_START, sample_ids, t, (number,), tuple(like.shape[1:]))[0]
        return self.noise_scale * normal.to(like.dtype)

    def _image(self, raw_at: RawAtLevel, sample_ids: Tensor, y: Tensor) -> Tensor:
        """x_0, or the image without its noise, from y_0."""
        if self.end is None:
            return y / float(self.levels.transition_scale[0])
        return self.end.clean(raw_at(torch.zeros_like(sample_ids)), y)

    def _recovery(
        self,
        here: Levels,
        noise: Noise,
        sample_ids: Tensor,
        t: int,
        x_noisy: Tensor,
        start: Tensor,
        number: int,
        observed: tuple[Observation, Tensor] | None,
    ) -> Chain:
        """y_t given x_{t+1}: the chain of round `number` of a level, over the unobserved part."""
        shape = tuple(x_noisy.shape[1:])
        chain = KeyedChainNoise(noise, Purpose.SAMPLE_CHAIN, sample_ids, t, shape, x_noisy.dtype)
        averages, purpose = self.averages_noise, Purpose.SAMPLE_BEFORE
        before = noise_before(averages, noise, purpose, sample_ids, t, shape, number, x_noisy.dtype)
        num_draws, level = self.num_draws[t], torch.full_like(sample_ids, t)
        if observed is None:
            kernel = partial(self._kernel, here=here, x_noisy=x_noisy, observation=None, before=before)
            return Chain(level, kernel, start, chain, num_draws, start=number * num_draws)
        observation, known = observed
        if before is not None:
            before = observation.keep(before, torch.zeros_like(before))
        kernel = partial(self._kernel, here=here, x_noisy=x_noisy, observation=observation, before=before)
        y = observation.keep(start, float(self.levels.transition_scale[t]) * known)
        return Chain(level, kernel, y, _RestNoise(chain, observation), num_draws, start=number * num_draws)

    def _kernel(
        self,
        raw_and_grad: LogDensityAndGrad,
        here: Levels,
        x_noisy: Tensor,
        observation: Observation | None,
        before: Tensor | None,
    ) -> Kernel[Any]:
        """The kernel that draws y_t, or its unobserved part, given x_{t+1}."""
        marginal = scaled_density(raw_and_grad, here.energy_scale)
        if self.num_chain_steps == 0:
            density = marginal if observation is None else _of_the_rest(marginal, observation)
            return NormalApproximation(density, here.recovery_precision.rsqrt(), self.noise_scale, here.normal_std)
        conditional = conditional_density(marginal, x_noisy, here.recovery_precision)
        density = conditional if observation is None else _of_the_rest(conditional, observation)
        if self.own_kernel is not None:
            return self.own_kernel(density, here.step_size, self.noise_scale)
        return langevin(density, here.step_size, self.noise_scale, before)


def enlarge(images: Tensor, size: int) -> Tensor:
    """Every pixel of (B, C, H, W) repeated `size` times in both directions."""
    return images.repeat_interleave(size, 2).repeat_interleave(size, 3)


def _of_the_rest(density: LogDensityAndGrad, observation: Observation) -> LogDensityAndGrad:
    """The same density as a function of the unobserved part."""

    def rest(y: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = density(y)
        return value, observation.keep(gradient, torch.zeros_like(gradient))

    return rest


@dataclass(frozen=True)
class _RestNoise:
    """Chain noise that is 0 in the observed part."""

    noise: ChainNoise
    observation: Observation

    def steps(self, start: int, stop: int, num_uniforms: int) -> Iterator[StepNoise]:
        """See `ChainNoise.steps`."""
        for numbers in self.noise.steps(start, stop, num_uniforms):
            normal = numbers.normal
            yield numbers._replace(normal=self.observation.keep(normal, torch.zeros_like(normal)))
