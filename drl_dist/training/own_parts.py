"""A network, kernel and objectives of the user's, tried before a run starts."""

from __future__ import annotations

from drl_dist.build import build_kernel, build_ladder, build_network
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.training.objectives import make_objective
from drl_dist.training.sharded import check_shares


def check_own_parts(experiment: Experiment, engine: EngineConfig | None = None) -> None:
    """Return if whatever an experiment names by import path, or of timm, can be made.

    Args:
        experiment: without fields that are left to the data.
        engine: that it is to be trained with, if that is known.

    Raises:
        UserError: it cannot.
    """
    if not experiment.model.is_built_in:
        network = build_network(experiment)
        if engine is not None and engine.shard:
            check_shares(network, experiment)
    build_kernel(experiment.mcmc.kernel)
    if experiment.mcmc.sampling_kernel is not None:
        build_kernel(experiment.mcmc.sampling_kernel, "mcmc.sampling_kernel")
    ladder = build_ladder(experiment.diffusion)
    for name in experiment.optim.objectives:
        make_objective(name, experiment, ladder)
