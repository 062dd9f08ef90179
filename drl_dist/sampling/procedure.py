"""A way to sample as a sequence of the parts that need the network, made at once or one gradient at a time.

Samplers are generators of parts, to which the result of each is sent back. `stages_of` makes whole chains in a row, as
jobs do. `drl_dist.serving` makes many procedures side by side, whose gradients share calls of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad, RawAtLevel
from drl_dist.mcmc.kernel import ChainNoise, Kernel, run_chain


class Stage(NamedTuple):
    """A level is done. Nothing is sent back."""

    t: int
    """From T, white noise, to 0, the image."""
    x: Tensor
    """x_t, float32 (B, C, H, W)."""


class Once(NamedTuple):
    """Something that is computed once, such as the start of a chain. Its result is sent back."""

    compute: Callable[[RawAtLevel], Tensor]


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain of one level. Where it ends, (B, C, H, W), is sent back.

    Args:
        level: (B,) int64, t.
        kernel: the network at these levels -> the kernel.
        y: (B, C, H, W) where the chain starts.
        noise: its numbers.
        num_chain_steps: its length.
        start: number of the first step, which keys its numbers.
    """

    level: Tensor
    kernel: Callable[[LogDensityAndGrad], Kernel[Any]]
    y: Tensor
    noise: ChainNoise
    num_chain_steps: int
    start: int = 0


Procedure: TypeAlias = Generator[Stage | Once | Chain, Any, None]
"""Parts in their order; the last one is the stage of the image."""


def stages_of(procedure: Procedure, raw_at: RawAtLevel) -> Iterator[Stage]:
    """The stages of a procedure, each as soon as it is reached.

    Args:
        procedure: at its beginning.
        raw_at: the network.
    """
    result: Tensor | None = None
    while True:
        try:
            part = procedure.send(result)
        except StopIteration:
            return
        result = None
        if isinstance(part, Stage):
            yield part
        elif isinstance(part, Once):
            result = part.compute(raw_at)
        else:
            kernel = part.kernel(raw_at(part.level))
            result = run_chain(kernel, part.y, part.noise, part.num_chain_steps, start=part.start).y


def image_of(procedure: Procedure, raw_at: RawAtLevel) -> Tensor:
    """The x of the last stage; arguments as of `stages_of`."""
    image: Tensor | None = None
    for _, x in stages_of(procedure, raw_at):
        image = x
    assert image is not None
    return image
