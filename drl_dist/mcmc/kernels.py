"""The registry of kernels: one row for each, by which every option, file and page names it.

A new kernel is its module beside this one and its row in `KERNELS`, and one that is adjusted has its name in
`drl_dist.mcmc.settings.KernelName`; long runs, step-size files and docs/samplers.md
take it from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from drl_dist.mcmc.hmc import Hmc
from drl_dist.mcmc.kernel import Kernel, KernelAt
from drl_dist.mcmc.langevin import LeimkuhlerMatthews, UnadjustedLangevin
from drl_dist.mcmc.mala import Mala
from drl_dist.mcmc.normal_approximation import NormalApproximation
from drl_dist.mcmc.nuts import Nuts
from drl_dist.mcmc.settings import KernelName

_NUM_LEAPFROG_STEPS, _MAX_TREE_DEPTH = 2, 10
"""Options by default, those of `Hmc` and `Nuts`."""


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """What the rest of the project knows of a kernel."""

    name: str
    """By which options and files call it."""
    kernel: Callable[..., Kernel[Any]]
    """Density, step size (B,) and the options by name -> the kernel."""
    is_adjusted: bool
    """Whether a Metropolis step, or a choice with the same effect, leaves the density exactly as it is."""
    gradients: Callable[[int, int], tuple[int, int]] = lambda num_leapfrog_steps, max_tree_depth: (1, 1)
    """Fewest and most gradients of a step, given num_leapfrog_steps and max_tree_depth."""
    options: tuple[Literal["num_leapfrog_steps", "max_tree_depth"], ...] = ()
    """Those that it takes."""
    step_sizes_of: str | None = None
    """The kernel that its step sizes are adapted with, by default itself."""


_ROWS = (
    KernelRow(name="langevin", kernel=UnadjustedLangevin, is_adjusted=False),
    KernelRow(name="leimkuhler_matthews", kernel=LeimkuhlerMatthews, is_adjusted=False),
    KernelRow(name="normal_approximation", kernel=NormalApproximation, is_adjusted=False),
    KernelRow(
        name="hmc",
        kernel=Hmc,
        is_adjusted=True,
        gradients=lambda num_leapfrog_steps, max_tree_depth: (num_leapfrog_steps, num_leapfrog_steps),
        options=("num_leapfrog_steps",),
    ),
    KernelRow(name="mala", kernel=Mala, is_adjusted=True),
    KernelRow(
        name="nuts",
        kernel=Nuts,
        is_adjusted=True,
        gradients=lambda num_leapfrog_steps, max_tree_depth: (1, 2**max_tree_depth - 1),
        options=("max_tree_depth",),
        # A trajectory is as long as it has to be at any step size; HMC says which one is right.
        step_sizes_of="hmc",
    ),
)
KERNELS: dict[str, KernelRow] = {row.name: row for row in _ROWS}
"""Every kernel by its name."""


def kernel_named(
    name: KernelName, *, num_leapfrog_steps: int = _NUM_LEAPFROG_STEPS, max_tree_depth: int = _MAX_TREE_DEPTH
) -> KernelAt:
    """The kernels of one kind, as functions of density and step size.

    Args:
        name: which kind, of `KERNELS`.
        num_leapfrog_steps: of HMC.
        max_tree_depth: of NUTS.
    """
    given = {"num_leapfrog_steps": num_leapfrog_steps, "max_tree_depth": max_tree_depth}
    row = KERNELS[name]
    return partial(row.kernel, **{option: given[option] for option in row.options})


def adapted_with(name: KernelName) -> KernelRow:
    """The kernel that the step sizes of this one are adapted with."""
    row = KERNELS[name]
    return KERNELS[row.step_sizes_of or row.name]


def gradients_per_step(
    name: KernelName, *, num_leapfrog_steps: int = _NUM_LEAPFROG_STEPS, max_tree_depth: int = _MAX_TREE_DEPTH
) -> tuple[int, int]:
    """Fewest and most gradients of one step; options as of `kernel_named`."""
    return KERNELS[name].gradients(num_leapfrog_steps, max_tree_depth)
