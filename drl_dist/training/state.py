"""Everything a training run carries from step to step."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.build import build_network
from drl_dist.config.tree import Experiment
from drl_dist.energy.network import EnergyNetwork
from drl_dist.training.ema import Ema, load_averaged

Parts = dict[str, dict[str, Tensor]]
"""``{"weights": …, "ema": …, "optimizer": …}``, each named tensors."""


@dataclass
class TrainState:
    """Weights, moving average, optimiser, and the number of steps made.

    Randomness needs no state: it is keyed by the seed and the position in the stream of samples.
    """

    network: EnergyNetwork
    ema: Ema
    optimizer: torch.optim.Adam
    step: int = 0

    @classmethod
    def create(
        cls, experiment: Experiment, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> TrainState:
        """The state before the first step; the seed determines it."""
        return cls.of(build_network(experiment, dtype).to(device), experiment)

    @classmethod
    def of(cls, network: EnergyNetwork, experiment: Experiment) -> TrainState:
        """The state before the first step of this network, which is not copied."""
        optim = experiment.optim
        optimizer = torch.optim.Adam(
            network.parameters(),
            lr=optim.learning_rate,
            betas=(optim.beta1, optim.beta2),
            eps=optim.epsilon,
            fused=True,
        )
        return cls(network, Ema(network, optim.ema_decay), optimizer)

    def gather(self) -> None:
        """Have all weights in the network until the next update; they always are, unless workers share them."""

    def gradient_norm(self) -> Tensor:
        """The norm () of the gradient of all parameters."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])

    def tensors(self) -> Parts:
        """Every tensor of the state, by part and name; not copies."""
        moments: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments[f"{name}/{key}"] = value
        return {"weights": dict(self.network.state_dict()), "ema": dict(self.ema.shadow), "optimizer": moments}

    @property
    def num_bytes(self) -> int:
        """Of the tensors."""
        return sum(value.nbytes for part in self.tensors().values() for value in part.values())

    def load_tensors(self, parts: Parts, step: int) -> None:
        """Continue from saved tensors.

        Those of a network that knew no labels do for one that does: what labels add begins anew, with nothing.

        Raises:
            RuntimeError, ValueError: names or shapes are not those of this network.
        """
        before = {"weights": dict(self.network.state_dict()), "ema": self.ema.shadow}
        new = {name for name in before["weights"] if "condition" in name.split(".")} - parts["weights"].keys()
        parts = {
            part: {**tensors, **{name: before[part][name] for name in new}} if part in before else tensors
            for part, tensors in parts.items()
        }
        self.network.load_state_dict(parts["weights"])
        _check_names("ema", set(self.ema.shadow), set(parts["ema"]))
        for name, value in parts["ema"].items():
            self.ema.shadow[name].copy_(value)
        parameters = dict(self.network.named_parameters())
        owners = {name.rsplit("/", 1)[0] for name in parts["optimizer"]}
        # Adam begins with a parameter at its first gradient: frozen ones never have moments, nor have those yet that no
        # objective so far has moved.
        _check_names("optimizer", owners & set(parameters), owners)
        self.optimizer.state.clear()
        for name, value in parts["optimizer"].items():
            owner, key = name.rsplit("/", 1)
            like = parameters[owner]
            # A clone in the parameter's own layout, as Adam would have made it.
            self.optimizer.state[like][key] = (
                torch.empty_like(like).copy_(value) if key != "step" else value.clone().to(like.device)
            )
        self.step = step

    def ema_network(self) -> EnergyNetwork:
        """A network with the averaged weights, for sampling."""
        return load_averaged(copy.deepcopy(self.network), self.ema.shadow)


def _check_names(part: str, expected: set[str], got: set[str]) -> None:
    if expected != got:
        raise ValueError(f"{part} tensors do not fit this network: {sorted(expected ^ got)[:4]} differ")
