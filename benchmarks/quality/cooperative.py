"""An energy with an initialiser (cooperative learning; Zhu et al., 2024): a second, smaller network that says where
chains start, in place of the energy's own gradient by Tweedie's formula.

The initialiser gives a score of x_{t+1}, hence a mean of y_t; starts have the posterior's noise around it, as those of
`Tweedie` have, and x_T is white noise to both. It learns from the data while scores are matched, and from where chains
end, as its authors have it, while energies recover.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.quality.settings import Overrides, applied
from drl_dist.build import build_ladder, build_levels, build_sampler, unet_sizes
from drl_dist.common.batch import Batch
from drl_dist.common.images import to_uint8
from drl_dist.config.from_data import known
from drl_dist.config.tree import EngineConfig, Experiment, ModelConfig
from drl_dist.diffusion.ladder import NoiseLadder, Pairs
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import Levels, RawAtLevel, matching_loss
from drl_dist.energy.unet import EnergyUNet, apply_unet
from drl_dist.mcmc.kernel import column
from drl_dist.sampling.tweedie import Tweedie
from drl_dist.training.chain import GradientEngine
from drl_dist.training.objectives import Objective, Outcome
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep

_TOGETHER = 256


class Initialiser(EnergyUNet):
    """The score of x_{t+1}, (B, C, H, W): that of white Gaussian data where training starts.

    Args:
        model: sizes; what else it says is for energies.
        width: in place of the model's.
        ladder: the forward process.
        seed: of the initial weights.
    """

    def __init__(self, model: ModelConfig, width: int, ladder: NoiseLadder, seed: int) -> None:
        super().__init__(
            **unet_sizes(dataclasses.replace(model, width=width)),
            noise_std=ladder.cumulative_std[1:],
            signal_std=known(model.data_std, "model.data_std") * ladder.cumulative_scale[1:],
            generator=torch.Generator().manual_seed(seed),
        )
        self.float()

    def score(self, x_noisy: Tensor, level: Tensor) -> Tensor:
        """Of x_{t+1}, for levels t (B,): (h(u, t) sqrt(v) / s - u) / sqrt(v + s**2), with u = x / sqrt(v + s**2).

        s is the standard deviation of the noise in x_{t+1} and v the variance of the data in it; h is of order one.
        """
        noise, signal = (column(values[level], x_noisy) for values in (self.noise_std, self.signal_std))
        total = torch.hypot(noise, signal)
        u = x_noisy / total
        return (signal / noise * apply_unet(self.prepare(level), u) - u) / total

    def weight(self, level: Tensor, *, is_noisy: bool) -> Tensor:
        """(B,) of a squared error of the score: errors of h count alike at every level.

        Args:
            is_noisy: the target has y_t's noise in it, of which h is no more than order one with this weight.
        """
        noise, signal = self.noise_std[level], self.signal_std[level]
        return noise.square() * (1.0 if is_noisy else 1 + (noise / signal).square())


@dataclass(frozen=True)
class Start(Tweedie):
    """Starts of chains by an initialiser."""

    initialiser: Initialiser

    def _score_above(self, raw_at: RawAtLevel, x: Tensor, level: Tensor) -> Tensor:
        with torch.no_grad():
            score = self.initialiser.score(x, level)
        # As for the energy itself, x_T is white noise.
        return torch.where(column(level == self.levels.num_levels - 1, x), -x, score)


class WithInitialiser:
    """An objective, and beside it the initialiser's: squared distance of its mean of y_t from the target.

    Args:
        inner: the energy's.
        learns_from_chains: the target is where a chain ended, if there is one; else it is the mean of y_t given x_{t+1}
            and the data.
    """

    def __init__(
        self, inner: Objective, initialiser: Initialiser, ladder: NoiseLadder, levels: Levels, learns_from_chains: bool
    ) -> None:
        self.inner, self.initialiser, self.ladder, self.levels = inner, initialiser, ladder, levels
        self.learns_from_chains = learns_from_chains
        self.needs_negatives, self.needs_gradient = inner.needs_negatives, inner.needs_gradient
        self.reports, self.is_mean = inner.reports, inner.is_mean

    def outcome(self, forward: nn.Module, pairs: Pairs, y_neg: Tensor | None, here: Levels) -> Outcome:
        """See `Objective.outcome`."""
        outcome = self.inner.outcome(forward, pairs, y_neg, here)
        from_chains = self.learns_from_chains and y_neg is not None
        target = self._implied(pairs, y_neg) if from_chains and y_neg is not None else pairs.score
        # The topmost starts ask no network.
        weight = self.initialiser.weight(pairs.level, is_noisy=from_chains)
        weight = torch.where(pairs.level == self.levels.num_levels - 1, 0.0, weight)
        loss = matching_loss(self.initialiser.score(pairs.x_noisy, pairs.level), target, weight)
        return Outcome(outcome.loss + loss, outcome.reported)

    def _implied(self, pairs: Pairs, y: Tensor) -> Tensor:
        """The score for which the mean of y_t given x_{t+1} is y, below the top."""
        std = self.ladder.std[1:].to(y.dtype)[pairs.level]
        return (y - pairs.x_noisy) / column(std.square(), y)


class CooperativeTrainee:
    """See `benchmarks.quality.trainees.Trainee`.

    Args:
        options: ``width`` of the initialiser; ``target``, ``chains`` or ``data``: what it learns from in recovery.
    """

    def __init__(self, experiment: Experiment, options: Mapping[str, Any], engine: EngineConfig) -> None:
        self._options, self._engine = options, engine
        self.state = TrainState.create(experiment)
        ladder, seed = build_ladder(experiment.diffusion), experiment.train.seed
        network, optim = self.state.network, experiment.optim
        network.initialiser = Initialiser(experiment.model, options["width"], ladder, seed + 1)
        optimizer = torch.optim.Adam(
            network.parameters(), optim.learning_rate, (optim.beta1, optim.beta2), optim.epsilon, fused=True
        )
        self.state = TrainState(network, type(self.state.ema)(network, optim.ema_decay), optimizer)
        self.begin(experiment)

    def begin(self, experiment: Experiment) -> None:
        """See `Trainee.begin`."""
        self._experiment = experiment
        self.state.ema.decay = experiment.optim.ema_decay
        step = TrainStep(self.state, experiment, self._engine)
        initialiser = self._initialiser_of(self.state.network)
        objective = WithInitialiser(
            step.objective, initialiser, step.ladder, step.levels, self._options["target"] == "chains"
        )
        # What others say of themselves as classes, it says of each one.
        step.objective = cast(Objective, objective)
        if step.sampler.start is not None:
            start = Start(step.levels, step.ladder, initialiser)
            step.sampler = dataclasses.replace(step.sampler, start=start)
        self._step = step

    def step(self, batch: Batch) -> None:
        """See `Trainee.step`."""
        self._step(batch)

    @torch.no_grad()
    def draw(self, how: Overrides | int, count: int) -> Tensor:
        """See `Trainee.draw`."""
        assert not isinstance(how, int)
        experiment = applied(self._experiment, how)
        model, ladder = experiment.model, build_ladder(experiment.diffusion)
        network = self.state.ema_network()
        engine = GradientEngine(network, self._engine, is_frozen=True)
        start = Start(build_levels(experiment, ladder), ladder, self._initialiser_of(network))
        sampler = dataclasses.replace(build_sampler(experiment), start=start)
        noise, shape = PhiloxNoise(experiment.train.seed), (model.channels, model.resolution, model.resolution)
        parts = torch.arange(count).split(_TOGETHER)
        return torch.cat([to_uint8(sampler.sample(engine.raw_at, noise, ids, shape)) for ids in parts])

    @staticmethod
    def _initialiser_of(network: nn.Module) -> Initialiser:
        found = network.initialiser
        assert isinstance(found, Initialiser)
        return found
