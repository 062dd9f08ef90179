"""What is trained: an energy of drl_dist, or the baseline; and what a step and a sample of it cost."""

from __future__ import annotations

import copy
import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.quality.cooperative import CooperativeTrainee
from benchmarks.quality.ddpm import Ddpm
from benchmarks.quality.settings import Overrides, Setting, applied
from benchmarks.quality.unet import NoiseUNet
from drl_dist.common.batch import Batch
from drl_dist.common.images import to_uint8, to_unit_range
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.training.cost import count_flop
from drl_dist.training.ema import Ema
from drl_dist.training.generate import draw_together
from drl_dist.training.guard import DivergedError
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep, learning_rate_at

ENGINE = EngineConfig()
_DRAWN_TOGETHER = 256


class Trainee(Protocol):
    """Something that learns step by step and draws images."""

    state: TrainState

    def begin(self, experiment: Experiment) -> None:
        """Go on with the steps of another phase."""
        ...

    def step(self, batch: Batch) -> None:
        """Make one step; raises `DivergedError` if it would not be finite."""
        ...

    def draw(self, how: Overrides | int, count: int) -> Tensor:
        """Images of the averaged weights, uint8 (count, C, H, W); see `Setting.draws`."""
        ...


def start(setting: Setting, experiment: Experiment) -> Trainee:
    """A trainee before its first step."""
    if setting.method == "cooperative":
        return CooperativeTrainee(experiment, setting.options, ENGINE)
    if setting.method == "weighted":
        # It is an `EnergyTrainee`, of this module.
        from benchmarks.quality.weighted import WeightedTrainee

        return WeightedTrainee(experiment)
    return (DdpmTrainee if setting.method == "ddpm" else EnergyTrainee)(experiment)


class EnergyTrainee:
    """See `Trainee`."""

    def __init__(self, experiment: Experiment) -> None:
        self.state = TrainState.create(experiment)
        self.begin(experiment)

    def begin(self, experiment: Experiment) -> None:
        """See `Trainee.begin`. Adam's decays stay those of the first phase."""
        self._experiment = experiment
        self.state.ema.decay = experiment.optim.ema_decay
        self._step = TrainStep(self.state, experiment, ENGINE)

    def step(self, batch: Batch) -> None:
        """See `Trainee.step`."""
        self._step(batch)

    def draw(self, how: Overrides | int, count: int) -> Tensor:
        """See `Trainee.draw`."""
        assert not isinstance(how, int)
        experiment = applied(self._experiment, how)
        # Images do not depend on those beside them: this is a matter of speed.
        train = dataclasses.replace(experiment.train, batch_size=_DRAWN_TOGETHER)
        experiment = dataclasses.replace(experiment, train=train)
        return draw_together(experiment, ENGINE, self.state, count, whole_way=False)[-1]


class DdpmTrainee:
    """See `Trainee`; the optimiser, its warm-up and the average are those of an energy."""

    def __init__(self, experiment: Experiment) -> None:
        optim, model = experiment.optim, experiment.model
        self._shape = (model.channels, model.resolution, model.resolution)
        self._network = NoiseUNet(experiment.model, experiment.train.seed)
        optimizer = torch.optim.Adam(
            self._network.parameters(), optim.learning_rate, (optim.beta1, optim.beta2), optim.epsilon, fused=True
        )
        # The state asks nothing of an energy but for samples, which are drawn here.
        self.state = TrainState(self._network, Ema(self._network, optim.ema_decay), optimizer)
        self.begin(experiment)

    def begin(self, experiment: Experiment) -> None:
        """See `Trainee.begin`."""
        self._experiment, self._seed = experiment, experiment.train.seed
        self.state.ema.decay = experiment.optim.ema_decay

    def step(self, batch: Batch) -> None:
        """See `Trainee.step`."""
        state, parameters = self.state, list(self._network.parameters())
        loss = Ddpm(self._network, self._seed).loss(to_unit_range(batch.images), batch.positions)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._experiment.optim.max_grad_norm or float("inf"))
        if not bool((loss + norm).isfinite()):
            raise DivergedError(state.step, float(loss), float(norm))
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(self._experiment, state.step)
        state.optimizer.step()
        state.ema.update(self._network)
        state.step += 1

    def draw(self, how: Overrides | int, count: int) -> Tensor:
        """See `Trainee.draw`."""
        assert isinstance(how, int)
        averaged = copy.deepcopy(self._network)
        averaged.load_state_dict(self.state.ema.shadow)
        model = Ddpm(averaged.requires_grad_(False), self._seed)
        parts = torch.arange(count).split(_DRAWN_TOGETHER)
        return torch.cat([to_uint8(model.draw(ids, self._shape, how)) for ids in parts])


def step_flop(setting: Setting, experiment: Experiment) -> float:
    """Operations for one image in one step: a real step, chain and update, of a network that is thrown away."""
    model, count = experiment.model, experiment.train.batch_size
    images = torch.zeros(count, model.channels, model.resolution, model.resolution, dtype=torch.uint8)
    trainee = start(setting, experiment)
    return count_flop(lambda: trainee.step(Batch(images, torch.arange(count)))) / count
