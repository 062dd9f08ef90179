"""Long-run chains down the ladder of conditional densities (section 4.2, Figures 8 and 10).

Each level takes one draw from the normal approximation, then steps of a Metropolis-adjusted kernel on the conditional
density itself: with a good model, samples keep their quality however many steps there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.noise import MAX_SAMPLE_IDS, Noise, PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad, conditional_density, scaled_density
from drl_dist.mcmc.adaptation import AdaptingChains, StepSizes, adapt_step_size
from drl_dist.mcmc.kernel import KernelAt, KeyedChainNoise, Observer, run_chain
from drl_dist.mcmc.kernels import gradients_per_step, kernel_named
from drl_dist.mcmc.normal_approximation import NormalApproximation
from drl_dist.mcmc.settings import AdaptationConfig, KernelName, Start
from drl_dist.sampling.progressive import RawAtLevel

ADAPTATION_IDS = MAX_SAMPLE_IDS // 2
"""First sample id of chains that adapt step sizes: their noise differs from that of images with the same seed."""

ObserveLevel = Callable[[int, Tensor], Observer | None]
"""(t, x_{t+1}) at the beginning of a level -> observer of its kernel's steps, if any; chain step 0 is the draw."""


class LongRun(NamedTuple):
    """Results of long-run chains."""

    x: Tensor
    """(B, ...) x_0."""
    kept: dict[int, Tensor]
    """t -> (B, ...) x_t of the requested levels; T is the white noise at the start."""


class Position(NamedTuple):
    """State of chains part of the way down the ladder, from which they can be resumed."""

    t: int
    """Level of the chains."""
    x_noisy: Tensor
    """(B, ...) x_{t+1}, with which the level began."""
    next_step: int = 0
    """Number of the next chain step at this level; 0 if the level has not begun."""
    state: Any = None
    """State of the kernel; None if the level has not begun."""


class LevelStart(NamedTuple):
    """One level's density and the chains that begin there."""

    density: LogDensityAndGrad
    """Log-density of y_t given x_{t+1}; of y_t alone at a marginal top level."""
    y: Tensor
    """(B, ...) a draw from the normal approximation, or x_{t+1}."""
    num_draws: int
    """Chain steps made so far: 1 after a draw, which has used the random numbers of chain step 0, else 0."""
    noise: KeyedChainNoise
    """Random numbers of the chains."""


@dataclass(frozen=True)
class LongRunSampler:
    """Takes one draw from the normal approximation and `num_chain_steps` - 1 steps of an adjusted kernel per level.

    The draw counts as one step, as in section 4.2: with 1 step per level this is sampling from the normal approximation
    alone. At a *marginal* top level (recovery precision 0) there is no quadratic term to approximate by a normal
    distribution. There the chains start at x_T itself, as in training and in `ProgressiveSampler`, and make all
    `num_chain_steps` steps with the kernel. `start` selects the same for every level, which suits few and large levels;
    see `suitable_start`.

    Args:
        levels: scales of the levels, (T,) float64 on the CPU.
        step_size: delta of the kernel at each level, (T,), as in `StepSizes`.
        kernel_at: the adjusted kernel.
        num_chain_steps: chain steps per level, including the draw.
        start: where the chains of a level begin.
        dtype: dtype of the chains. A network's log-density is so large (10**8 nats at the lowest of six levels) that
            float32 cannot resolve its change in a step, and acceptance is left to chance; see `adapt_step_size`.
    """

    levels: Levels
    step_size: tuple[float, ...]
    kernel_at: KernelAt
    num_chain_steps: int
    start: Start = "normal_approximation"
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if len(self.step_size) != self.levels.num_levels:
            raise ValueError(f"{len(self.step_size)} step sizes for {self.levels.num_levels} levels")

    def sample(
        self,
        raw_at: RawAtLevel,
        noise: Noise,
        sample_ids: Tensor,
        shape: tuple[int, ...],
        *,
        keep: Collection[int] = (),
        observe: ObserveLevel | None = None,
    ) -> LongRun:
        """Generated x_0.

        Args:
            raw_at: the network.
            noise: its numbers for image i depend on i alone, and those of a chain step not on how many follow.
            sample_ids: (B,) int64.
            shape: shape of one image, (C, H, W).
            keep: levels t whose x_t is kept, 0 <= t <= T.
            observe: called at the beginning of each level; returns the observer of its steps, if any.
        """
        x = self._white_noise(noise, sample_ids, shape)
        kept = {self.levels.num_levels: x} if self.levels.num_levels in keep else {}
        for t, x_t in self.descend(raw_at, noise, sample_ids, shape, observe=observe):
            x = x_t
            if t in keep:
                kept[t] = x
        return LongRun(x, kept)

    def descend(
        self,
        raw_at: RawAtLevel,
        noise: Noise,
        sample_ids: Tensor,
        shape: tuple[int, ...],
        *,
        observe: ObserveLevel | None = None,
        position: Position | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (t, x_t) for t = T-1, ..., 0, each as soon as it is computed; y_t is levels.transition_scale[t] * x_t.

        Args:
            raw_at: the network.
            noise: as for `sample`.
            sample_ids: (B,) int64.
            shape: shape of one image, (C, H, W).
            observe: as for `sample`.
            position: where interrupted chains resume, with the same results; by default they start at the top.
        """
        if position is None:
            position = Position(self.levels.num_levels - 1, self._white_noise(noise, sample_ids, shape))
        x, state = position.x_noisy, position.state
        for t in reversed(range(position.t + 1)):
            # A level that has begun has made its draw.
            begin = start_level(
                self.levels, t, raw_at, noise, sample_ids, x, self.start if state is None else "x_noisy"
            )
            first = begin.num_draws if state is None else position.next_step
            y = begin.y
            # A kernel without steps would still compute a gradient.
            if self.num_chain_steps > first or state is not None:
                kernel = self.kernel_at(begin.density, x.new_full((len(x),), self.step_size[t]))
                observer = None if observe is None else observe(t, x)
                num_steps = self.num_chain_steps - first
                y = run_chain(kernel, y, begin.noise, num_steps, start=first, observe=observer, state=state).y
            x, state = y / float(self.levels.transition_scale[t]), None
            yield t, x

    def _white_noise(self, noise: Noise, sample_ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        return noise.normal(Purpose.PRIOR, sample_ids, 0, (0,), shape)[0].to(self.dtype)


def suitable_start(ladder: NoiseLadder) -> Start:
    """The normal approximation if its draws are close to the mode at every level, else x_noisy.

    y_t carries noise with the standard deviation a_{t+1} * cumulative_std_t, so the curvature of its log-density is up
    to the inverse square of that. At that curvature the mean of the draw, x_noisy + sigma**2 * grad f, overshoots the
    mode by more than the distance of x_noisy from it as soon as sigma**2 exceeds twice that variance. On a ladder of a
    thousand levels no level does; on one of six, the lowest exceeds it by a factor of almost 600.
    """
    noise_in_y = ladder.scale[1:] * ladder.cumulative_std[:-1]
    is_near = ladder.std[1:].square() < 2 * noise_in_y.square()
    return "normal_approximation" if bool(is_near.all()) else "x_noisy"


def start_level(
    levels: Levels,
    t: int,
    raw_at: RawAtLevel,
    noise: Noise,
    sample_ids: Tensor,
    x_noisy: Tensor,
    start: Start = "normal_approximation",
) -> LevelStart:
    """The density of level t given x_noisy = x_{t+1} (B, ...), and the start of its chains; a draw takes a gradient."""
    level = torch.full_like(sample_ids, t)
    here = levels.to(x_noisy.device, x_noisy.dtype).at(level)
    marginal = scaled_density(raw_at(level), here.energy_scale)
    numbers = KeyedChainNoise(noise, Purpose.SAMPLE_CHAIN, sample_ids, level, tuple(x_noisy.shape[1:]), x_noisy.dtype)
    density = conditional_density(marginal, x_noisy, here.recovery_precision)
    if start == "x_noisy" or float(levels.recovery_precision[t]) == 0:
        return LevelStart(density, x_noisy, 0, numbers)
    draw = NormalApproximation(marginal, here.recovery_precision.rsqrt(), spread=here.normal_std)
    return LevelStart(density, run_chain(draw, x_noisy, numbers, 1).y, 1, numbers)


class Adapted(NamedTuple):
    """State of the adaptation of a ladder's step sizes, from which it can be resumed."""

    found: tuple[tuple[float, float], ...]
    """Step size and acceptance rate of the levels done, from T - 1 down."""
    xs: tuple[Tensor, ...]
    """Positions of the chains in batches (b, ...): x_t of the last of these levels."""


def adapt_step_sizes(
    levels: Levels,
    raw_at: RawAtLevel,
    shape: tuple[int, ...],
    *,
    seed: int,
    config: AdaptationConfig,
    kernel: KernelName = "hmc",
    num_leapfrog_steps: int = 2,
    start: Start = "normal_approximation",
    batch_size: int | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float64,
    observe: Callable[[int, float, float], None] | None = None,
    keep: Callable[[Adapted], None] | None = None,
    adapted: Adapted | None = None,
) -> StepSizes:
    """Adapt the step sizes of a kernel for every level, on chains that run down the ladder meanwhile (section 4.2).

    A level begins with the step size of the level above, times the ratio of the Langevin step sizes of the two.

    Args:
        levels: scales of the levels, (T,) float64 on the CPU.
        raw_at: the network.
        shape: shape of one image.
        seed: keys the noise, which differs from that of images with the same seed.
        config: numbers of chains and steps, and the range of acceptance rates to reach.
        kernel: kernel whose acceptance rates count.
        num_leapfrog_steps: leapfrog steps of each proposal of HMC.
        start: where the chains of a level begin.
        batch_size: chains that are computed together; by default all.
        device: device of the chains, by default the CPU.
        dtype: dtype of the chains; see `LongRunSampler`.
        observe: called with each level, its step size and its acceptance rate.
        keep: called after each level with a state to resume from.
        adapted: state that `keep` received, to resume from it; the results are the same.

    Raises:
        UserError: at some level no step size reaches the range of acceptance rates.
    """

    kernel_at = kernel_named(kernel, num_leapfrog_steps=num_leapfrog_steps)
    fewest, most = gradients_per_step(kernel, num_leapfrog_steps=num_leapfrog_steps)
    noise = PhiloxNoise(seed)
    ids = torch.arange(ADAPTATION_IDS, ADAPTATION_IDS + config.num_chains, device=device)
    parts = ids.split(batch_size or config.num_chains)
    if adapted is None:
        adapted = Adapted((), tuple(noise.normal(Purpose.PRIOR, part, 0, (0,), shape)[0].to(dtype) for part in parts))
    found, xs = list(adapted.found), list(adapted.xs)
    for t in reversed(range(levels.num_levels - len(found))):
        step_size = float(levels.step_size[t])
        if found:
            step_size = found[-1][0] * float(levels.step_size[t] / levels.step_size[t + 1])
        batches: list[AdaptingChains] = []
        for part, x in zip(parts, xs, strict=True):
            begin = start_level(levels, t, raw_at, noise, part, x, start)
            batches.append(AdaptingChains(kernel_at, begin.density, begin.y, begin.noise, begin.num_draws))
        step_size, rate = adapt_step_size(batches, step_size, config, what=f"step size of level {t}")
        found.append((step_size, rate))
        xs = [batch.y / float(levels.transition_scale[t]) for batch in batches]
        if observe is not None:
            observe(t, *found[-1])
        if keep is not None:
            keep(Adapted(tuple(found), tuple(xs)))
    step_sizes, rates = zip(*reversed(found), strict=True)
    return StepSizes(
        step_size=step_sizes,
        acceptance_rate=rates,
        kernel=kernel,
        num_leapfrog_steps=most if fewest == most else 0,
        num_chains=config.num_chains,
        num_steps=config.num_steps,
        seed=seed,
    )
