"""The kernel protocol of all samplers: a step from (state, noise) to (state, info)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from drl_dist.common.errors import UserError, described
from drl_dist.diffusion.noise import Noise, Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad

# Noise is drawn for as many chain steps at once as stay below this many numbers: few small calls, bounded memory.
_NUMBERS_PER_DRAW = 1 << 18


class StepNoise(NamedTuple):
    """The numbers of one chain step."""

    normal: Tensor
    """(B, ...) standard normals."""
    uniform: Tensor
    """(B, kernel.num_uniforms) float64 in (0, 1)."""


class State(Protocol):
    """What a chain carries from step to step; kernels add what they would otherwise compute twice."""

    @property
    def y(self) -> Tensor:
        """(B, ...) where the chains are."""
        ...


class Info(NamedTuple):
    """What one step says about itself, per chain."""

    is_accepted: Tensor
    """(B,) bool."""
    acceptance_probability: Tensor
    """(B,) in [0, 1]; of a trajectory, the mean over its points."""
    energy_error: Tensor
    """(B,) change of -log-density (with its kinetic term) that exact dynamics would leave at 0; of a trajectory, the
    largest in size."""
    is_divergent: Tensor
    """(B,) bool: the energy error is so large that the step size cannot be right."""
    num_leapfrog_steps: Tensor
    """(B,) int64 gradients that the chain needed; trees differ in size."""


StateT = TypeVar("StateT", bound=State)


class Kernel(Protocol[StateT]):
    """One transition of B chains at once; no chain waits for, or sees, another."""

    @property
    def num_uniforms(self) -> int:
        """Uniform numbers that each chain needs per step."""
        ...

    def init(self, y: Tensor) -> StateT:
        """The state of chains at y (B, ...)."""
        ...

    def __call__(self, state: StateT, noise: StepNoise) -> tuple[StateT, Info | None]:
        """Move every chain once; no info from a kernel that never rejects."""
        ...


KernelAt = Callable[[LogDensityAndGrad, Tensor], Kernel[Any]]
"""A kernel of one kind, for a density and a step size (B,)."""


def check_kernel(maker: Callable[[LogDensityAndGrad, Tensor, float], Kernel[Any]], name: str, field: str) -> None:
    """Return if kernels of the user's move two chains of a standard normal density.

    Args:
        maker: (density, step size, noise scale) -> kernel.
        name, field: what the config calls it, and where.

    Raises:
        UserError: they do not.
    """
    y = torch.linspace(-1, 1, 8).reshape(2, 1, 2, 2)

    def density(at: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * at.square().flatten(1).sum(1), -at

    def refused(got: str, expected: str) -> UserError:
        return UserError(f"config field {field}", got=f"{name}, {got}", expected=expected, remedy="correct the kernel")

    kernel = maker(density, torch.full((2,), 0.1), 1.0)
    try:
        count = kernel.num_uniforms
        uniform = torch.full((2, count), 0.5, dtype=torch.float64)
        state, _ = kernel(kernel.init(y), StepNoise(torch.ones_like(y), uniform))
        moved = getattr(state, "y", None)
    except Exception as error:
        # Whatever a class of the user's raises, it is that class's fault.
        raise refused(
            f"which raises {described(error)}", "num_uniforms, init(y), and (state, noise) -> (state, info or None)"
        ) from error
    if not hasattr(state, "_replace") or moved is None:
        raise refused(f"whose state is a {type(state).__name__}", "a NamedTuple with a field y")
    if not isinstance(moved, Tensor) or moved.shape != y.shape or not bool(moved.isfinite().all()):
        got = f"shape {tuple(moved.shape)}" if isinstance(moved, Tensor) else f"a {type(moved).__name__}"
        raise refused(f"which moves two chains to {got}", f"finite places of shape {tuple(y.shape)}")


class ChainNoise(Protocol):
    """Where the numbers of a whole chain come from."""

    def steps(self, start: int, stop: int, num_uniforms: int) -> Iterator[StepNoise]:
        """The numbers of the chain steps from `start` to `stop` - 1."""
        ...


@dataclass(frozen=True)
class KeyedChainNoise:
    """A chain's numbers from a keyed source.

    Args:
        noise: the source.
        purpose: what the normals are for; `Purpose.CHOICE` gives the uniforms.
        sample_ids: (B,) int64.
        level: noise level, one for all or (B,) int64.
        shape: of one sample.
        dtype: of the normals.
    """

    noise: Noise
    purpose: Purpose
    sample_ids: Tensor
    level: Tensor | int
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def steps(self, start: int, stop: int, num_uniforms: int) -> Iterator[StepNoise]:
        """See `ChainNoise.steps`."""
        count = len(self.sample_ids)
        none = torch.empty(count, 0, dtype=torch.float64, device=self.sample_ids.device)
        per_sample = max(1, torch.Size(self.shape).numel() + num_uniforms)
        per_draw = max(1, _NUMBERS_PER_DRAW // max(1, count * per_sample))
        for first in range(start, stop, per_draw):
            steps = range(first, min(first + per_draw, stop))
            normals = self.noise.normal(self.purpose, self.sample_ids, self.level, steps, self.shape).to(self.dtype)
            uniforms: list[Tensor] = [none] * len(steps)
            if num_uniforms:
                uniforms = list(
                    self.noise.uniform(Purpose.CHOICE, self.sample_ids, self.level, steps, num_uniforms).unbind()
                )
            yield from map(StepNoise, normals, uniforms)


Observer = Callable[[int, State, Info | None], None]
"""Told the chain step, the state after it, and what the step said about itself."""


def run_chain(
    kernel: Kernel[StateT],
    y: Tensor,
    noise: ChainNoise,
    num_chain_steps: int,
    *,
    start: int = 0,
    observe: Observer | None = None,
    state: StateT | None = None,
) -> StateT:
    """The state after `num_chain_steps` transitions from y.

    Args:
        kernel: the transition.
        y: (B, ...) where the chains are now.
        noise: the numbers of all steps.
        num_chain_steps: K.
        start: number of the first step, which keys its numbers.
        observe: called after every step.
        state: of chains that continue from the middle, where they are instead of at y.
    """
    state = kernel.init(y) if state is None else state
    for chain_step, numbers in enumerate(noise.steps(start, start + num_chain_steps, kernel.num_uniforms), start):
        state, info = kernel(state, numbers)
        if observe is not None:
            observe(chain_step, state, info)
    return state


def root_mean_square(values: Tensor) -> Tensor:
    """Per-pixel root mean square of each sample, (B, ...) -> (B,)."""
    return values.square().flatten(1).mean(1).sqrt()


def column(values: Tensor, like: Tensor) -> Tensor:
    """Numbers of each chain, (B,), shaped so that they multiply `like`, (B, ...)."""
    return values.reshape((-1,) + (1,) * (like.dim() - 1))
