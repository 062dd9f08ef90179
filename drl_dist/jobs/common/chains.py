"""How a trained model's chains are run, where an option asks for others than its config does."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

from drl_dist.common.errors import UserError
from drl_dist.common.validation import Rule
from drl_dist.config.tree import ChainKernelName, Experiment

CHAIN_FIELDS = ("num_chain_steps", "bound_fraction", "chain_kernel")
"""The options that requests of earlier versions know nothing of."""


class ChainOptions(Protocol):
    """The options; none of them given leaves the model as it is."""

    @property
    def noise_scale(self) -> float | None:
        """Factor on the noise."""
        ...

    @property
    def num_chain_steps(self) -> int | None:
        """K of every level."""
        ...

    @property
    def bound_fraction(self) -> float | None:
        """c of the rule bound, of every level."""
        ...

    @property
    def chain_kernel(self) -> ChainKernelName | None:
        """The kernel."""
        ...


def chain_rules(options: ChainOptions) -> list[Rule]:
    """What holds for every model."""
    scale, steps, fraction = options.noise_scale, options.num_chain_steps, options.bound_fraction
    return [
        (
            "--noise-scale",
            scale,
            "a finite number of at least 0",
            scale is None or (scale >= 0 and math.isfinite(scale)),
        ),
        ("--num-chain-steps", steps, "at least 0", steps is None or steps >= 0),
        ("--bound-fraction", fraction, "a number in (0, 2)", fraction is None or 0 < fraction < 2),
    ]


def with_chains(experiment: Experiment, options: ChainOptions) -> Experiment:
    """The model's experiment, with the chains that were asked for.

    Raises:
        UserError: this model cannot be sampled with them.
    """
    mcmc = experiment.mcmc
    if options.num_chain_steps == 0 and mcmc.start != "tweedie":
        raise UserError(
            "option --num-chain-steps",
            got=0,
            expected=f"at least 1 for a model with mcmc.start {mcmc.start}, which only chains lead away from",
            remedy="correct the option",
        )
    if options.bound_fraction is not None and mcmc.step_rule != "bound":
        raise UserError(
            "option --bound-fraction",
            got=options.bound_fraction,
            expected=f"none, since the model has steps of mcmc.step_rule {mcmc.step_rule}, no fractions of the bound",
            remedy="leave it out",
        )
    asked: dict[str, Any] = {
        "sampling_noise_scale": options.noise_scale,
        "sampling_chain_steps": options.num_chain_steps,
        "sampling_bound_fraction": options.bound_fraction,
        "sampling_kernel": options.chain_kernel,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return dataclasses.replace(experiment, mcmc=dataclasses.replace(mcmc, **given))
