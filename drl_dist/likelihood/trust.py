"""Whether the log-densities of a model can be those of its data, judged by the way in which it was trained."""

from __future__ import annotations

from drl_dist.config.tree import Experiment

TOO_SHARP = (
    "the energies were trained by short unadjusted Langevin chains on the released ladder and step sizes, and are too "
    "sharp to be densities even after perfect training: in exact Gaussian theory the learned precision is 97 times the "
    "true one at level 0 and 1.8 to 3.5 times above (T = 6, K = 30), so log-densities in nats are off by one to two "
    "orders of magnitude in curvature (docs/likelihood.md)"
)


def model_warnings(experiment: Experiment) -> tuple[str, ...]:
    """Reasons to distrust the log-densities of a model that follow from its experiment alone, one sentence each.

    This is the place for what training settings do to densities; every job that reports log-densities in nats prints
    and records these sentences. Whether an estimate of log Z is any good is judged by `drl_dist.likelihood.report`.

    A chain that starts at x_{t+1} and is too short to reach its target leaves samples that are too wide. Recovery
    likelihood makes its ends look like the data, so the energies become sharper than the data's density. Chains that
    start at Tweedie's mean have nearly the right width from the start, and a marginal density, such as that of T = 1,
    has chains without x_{t+1}: the theory behind the figures covers neither.
    """
    mcmc, optim, diffusion = experiment.mcmc, experiment.optim, experiment.diffusion
    has_short_chains = optim.objective == "recovery" and max(mcmc.chain_steps) > 0 and mcmc.start == "x_noisy"
    is_released = mcmc.step_rule == "released" and diffusion.ladder == "t6" and diffusion.num_levels > 1
    return (TOO_SHARP,) if has_short_chains and is_released else ()
