"""Score matching whose levels weigh less where their gradient is noisier, as measured while training."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from benchmarks.quality.trainees import EnergyTrainee
from drl_dist.common.batch import Batch
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.ladder import NoiseLadder, Pairs
from drl_dist.training.objectives import ByLevel, ScoreMatching
from drl_dist.training.step import TrainStep

MEASURE_EVERY = 25
"""Steps; a measurement costs the operations of one, which are not counted."""
_MEMORY = 0.7


class WeightedMatching(ScoreMatching):
    """Score matching with a factor on each level's weight."""

    def __init__(self, experiment: Experiment, ladder: NoiseLadder) -> None:
        super().__init__(experiment, ladder)
        self._plain = self._weight.values

    def follow(self, factor: Tensor) -> None:
        """Weigh levels by these factors (T,)."""
        self._weight = ByLevel(self._plain * factor.to(self._plain))


def factors(variances: Tensor) -> Tensor:
    """(T,) with mean 1, inversely proportional to the standard deviation of a level's gradient, so that the noise that
    each adds is the same; 1 for all while one of the variances (T,) is unknown, which is 0.
    """
    if not bool((variances > 0).all()):
        return torch.ones_like(variances)
    inverse = variances.rsqrt()
    return inverse / inverse.mean()


class WeightedTrainee(EnergyTrainee):
    """See `Trainee`; the variances are in the network's state, so that a run that was ended goes on with them."""

    def begin(self, experiment: Experiment) -> None:
        """See `Trainee.begin`."""
        network = self.state.network
        if not hasattr(network, "level_variances"):
            none = torch.zeros(experiment.diffusion.num_levels)
            network.register_buffer("level_variances", none)
            self.state.ema.shadow["level_variances"] = none.clone()
        super().begin(experiment)
        self._weighted: WeightedMatching | None = None
        if isinstance(self._step.objective, ScoreMatching):
            self._weighted = WeightedMatching(experiment, self._step.ladder)
            self._step.objective = self._weighted

    def step(self, batch: Batch) -> None:
        """See `Trainee.step`."""
        variances = self.state.network.level_variances
        assert isinstance(variances, Tensor)
        if self._weighted is not None:
            if self.state.step % MEASURE_EVERY == MEASURE_EVERY - 1:
                self._weighted.follow(torch.ones_like(variances))
                found = level_variances(self._step, batch)
                known = torch.where(variances > 0, _MEMORY * variances + (1 - _MEMORY) * found, found)
                variances.copy_(torch.where(found > 0, known, variances))
            self._weighted.follow(factors(variances))
        super().step(batch)


def level_variances(step: TrainStep, batch: Batch) -> Tensor:
    """(T,) mean square of the norm of one image's gradient at each level, about its variance; 0 where there is none.

    The square of the norm of the gradient of n images' mean, times n: right up to the square of the mean gradient.
    """
    pairs = step.draw(batch.images, batch.positions)
    parameters = list(step.state.network.parameters())
    found = torch.zeros(step.levels.num_levels)
    for level in pairs.level.unique().tolist():
        chosen = pairs.level == level
        parts = {field.name: getattr(pairs, field.name) for field in dataclasses.fields(pairs)}
        some = Pairs(**{name: value[chosen] for name, value in parts.items() if value is not None})
        loss = step.objective.outcome(step.forward, some, None, step.levels.at(some.level)).loss
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        norm = torch.nn.utils.get_total_norm(gradients)
        found[level] = norm.square() * len(some.level)
    return found
