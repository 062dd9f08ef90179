"""A trained network and what is known of it: what `drl_dist.Model` computes with, moves and saves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from drl_dist.library.arguments import place
from drl_dist.library.engine import Weights, frozen_engine, usable_device

if TYPE_CHECKING:
    from drl_dist.config.tree import Experiment
    from drl_dist.energy.network import EnergyNetwork
    from drl_dist.training.state import TrainState


class HeldModel:
    """A network at its averaged weights, on a device.

    Args:
        experiment: that the model was trained by.
        weights: averaged weights by name, float32 tensors or arrays, as a checkpoint keeps them.
        step: training steps made.
        device: where it computes.
        data: what is known of the data that it was trained on, for its model card.

    Raises:
        UserError: the device cannot be used.
    """

    def __init__(
        self,
        experiment: Experiment,
        weights: Weights,
        *,
        step: int,
        device: torch.device | str = "cpu",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        self._experiment, self._step, self._data = experiment, step, dict(data or {})
        # As they are stored: the network's own are settled (see `load_averaged`), and would settle further each time.
        self._weights = {name: torch.as_tensor(value).detach().cpu().clone() for name, value in weights.items()}
        self._engine = frozen_engine(experiment, self._weights, usable_device(device))

    @classmethod
    def of_state(cls, experiment: Experiment, state: TrainState, *, data: Mapping[str, Any] | None = None) -> Self:
        """The model that a training state has come to, for example in a callback of `drl_dist.train`."""
        return cls(experiment, state.ema.shadow, step=state.step, device=state.network.device, data=data)

    @property
    def experiment(self) -> Experiment:
        """What it was trained by."""
        return self._experiment

    @property
    def step(self) -> int:
        """Training steps made."""
        return self._step

    @property
    def weights(self) -> dict[str, Tensor]:
        """Copies of the averaged weights by name, on the CPU."""
        return {name: value.clone() for name, value in self._weights.items()}

    @property
    def data(self) -> dict[str, Any]:
        """What is known of the data that it was trained on."""
        return dict(self._data)

    @property
    def network(self) -> EnergyNetwork:
        """The network at its averaged weights, on the model's device; its parameters take no gradients."""
        return self._engine.network

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._engine.network.image_shape

    @property
    def num_levels(self) -> int:
        """T, the number of noise levels."""
        return self._experiment.diffusion.num_levels

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes or attributes that the energies know, in the order of their numbers; empty without."""
        return self._experiment.condition.names

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._engine.network.device

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device, such as ``"cuda"``, in place; the model.

        Raises:
            UserError: torch cannot use this device.
        """
        self._engine = frozen_engine(self._experiment, self._weights, usable_device(device))
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model into a folder that `drl_dist.load` reads anywhere: ``model.safetensors``, ``config.json`` and
        a model card, ``README.md``, the layout of a model hub.

        Args:
            folder: a new or an empty one on this machine, or one that holds a saved model, which is replaced; a model
                card that was edited since stays.

        Raises:
            UserError: something else is there, or it cannot be written; nothing is left half-written.
        """
        from drl_dist.library.extras import needing

        with needing("files", "saving a model"):
            from drl_dist.library.folder import write_model

            write_model(
                place("folder", folder, "a path"), self._experiment, self._weights, step=self._step, data=self._data
            )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._experiment.preset}, step {self._step}, images of {self.image_shape}, "
            f"{self.num_levels} levels, on {self.device})"
        )
