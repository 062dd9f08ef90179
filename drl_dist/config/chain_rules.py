"""The rules on how chains move, `McmcConfig`, each with its error message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drl_dist.common.amounts import counted

if TYPE_CHECKING:
    # The tree checks itself with these rules when it is made.
    from drl_dist.config.tree import Experiment, McmcConfig

Rule = tuple[str, object, str, bool]
"""A field, what it is, what it should be, and whether it is."""


def chain_rules(experiment: Experiment) -> list[Rule]:
    """The rules on chains for an experiment."""
    mcmc, optim, levels = experiment.mcmc, experiment.optim, experiment.diffusion.num_levels
    k_field, k_given = chain_steps_field(mcmc)
    fewest = 0 if mcmc.start == "tweedie" else 1
    return [
        ("mcmc.num_chain_steps", mcmc.num_chain_steps, "at least 0", mcmc.num_chain_steps >= 0),
        (
            "mcmc.level_chain_steps",
            mcmc.level_chain_steps,
            f"none, or {counted(levels, 'number')} (one per level), "
            + ("at least 1: a 0 needs mcmc.start tweedie" if fewest else "at least 0"),
            not mcmc.level_chain_steps
            or (len(mcmc.level_chain_steps) == levels and min(mcmc.level_chain_steps) >= fewest),
        ),
        (
            "mcmc.top_level",
            mcmc.top_level,
            "conditional, since a marginal top level has no normal approximation (mcmc.num_chain_steps 0, or "
            f"optim.objective {' and '.join(optim.objectives)})",
            mcmc.top_level == "conditional"
            or (
                (max(mcmc.chain_steps) > 0 or mcmc.start == "tweedie")
                and not {"normal_likelihood", "dsm"} & set(optim.objectives)
            ),
        ),
        (
            "mcmc.antithetic",
            mcmc.antithetic,
            f"off for chains of Langevin steps ({k_field} {k_given})",
            not mcmc.antithetic or max(mcmc.chain_steps) == 0,
        ),
        ("mcmc.bound_fraction", mcmc.bound_fraction, "a number in (0, 2)", 0 < mcmc.bound_fraction < 2),
        (
            "mcmc.level_bound_fractions",
            mcmc.level_bound_fractions,
            f"none, or {levels} numbers in (0, 2) (one per level)",
            not mcmc.level_bound_fractions
            or (len(mcmc.level_bound_fractions) == levels and all(0 < c < 2 for c in mcmc.level_bound_fractions)),
        ),
        (
            "mcmc.level_bound_fractions",
            mcmc.level_bound_fractions,
            f"none, since steps of mcmc.step_rule {mcmc.step_rule} are no fractions of the bound",
            not mcmc.level_bound_fractions or mcmc.step_rule == "bound",
        ),
        (
            "mcmc.sampling_chain_steps",
            mcmc.sampling_chain_steps,
            f"none, or at least {fewest}" + (": a 0 needs mcmc.start tweedie" if fewest else ""),
            mcmc.sampling_chain_steps is None or mcmc.sampling_chain_steps >= fewest,
        ),
        (
            "mcmc.sampling_bound_fraction",
            mcmc.sampling_bound_fraction,
            "none, or a number in (0, 2)",
            mcmc.sampling_bound_fraction is None or 0 < mcmc.sampling_bound_fraction < 2,
        ),
        (
            "mcmc.sampling_bound_fraction",
            mcmc.sampling_bound_fraction,
            f"none, since steps of mcmc.step_rule {mcmc.step_rule} are no fractions of the bound",
            mcmc.sampling_bound_fraction is None or mcmc.step_rule == "bound",
        ),
        ("mcmc.step_scale_squared", mcmc.step_scale_squared, "a positive number", mcmc.step_scale_squared > 0),
        (
            "mcmc.level_scale_values",
            mcmc.level_scale_values,
            f"none, or {levels} positive numbers (one per level)",
            not mcmc.level_scale_values
            or (len(mcmc.level_scale_values) == levels and min(mcmc.level_scale_values) > 0),
        ),
        (
            "mcmc.level_scale_values",
            mcmc.level_scale_values,
            "none, since the level scales of mcmc.step_rule bound follow from the ladder",
            not mcmc.level_scale_values or mcmc.step_rule == "released",
        ),
        (
            "mcmc.level_scale_multiplier",
            mcmc.level_scale_multiplier,
            "a positive number",
            mcmc.level_scale_multiplier > 0,
        ),
        (
            "mcmc.step_adaptation",
            mcmc.step_adaptation,
            "none, or curvature with mcmc.step_rule bound and an mcmc.energy_scale that is not step_size",
            mcmc.step_adaptation == "none" or (mcmc.step_rule == "bound" and mcmc.energy_scale != "step_size"),
        ),
        (
            "mcmc.step_adaptation",
            mcmc.step_adaptation,
            f"none for chains of fewer than two steps ({k_field} {k_given}), which do not show a curvature",
            mcmc.step_adaptation == "none" or min(mcmc.chain_steps) >= 2,
        ),
    ]


def chain_steps_field(mcmc: McmcConfig) -> tuple[str, object]:
    """The field that says what K is, and its value."""
    name = "level_chain_steps" if mcmc.level_chain_steps else "num_chain_steps"
    return f"mcmc.{name}", getattr(mcmc, name)
