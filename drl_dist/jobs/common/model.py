"""A trained model on this machine, loaded from the registry, a checkpoint or a run's folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drl_dist.build import build_network
from drl_dist.checkpoints.format import CHECKSUMS, CONFIG, part_file, read_checkpoint
from drl_dist.checkpoints.storage import fetch_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.energy.network import EnergyNetwork
from drl_dist.training.chain import GradientEngine
from drl_dist.training.ema import load_averaged

if TYPE_CHECKING:
    # mlflow takes seconds to import, and a checkpoint given by its URL does not need it.
    from drl_dist.tracking.registry import ResolvedModel


@dataclass(frozen=True)
class TrainedModel:
    """A model on this machine."""

    experiment: Experiment
    step: int
    ema: dict[str, NDArray[np.float32]]
    ema_sha256: str
    config_sha256: str
    version: ResolvedModel | None
    """What the registry knows of it; its folder is gone."""

    @property
    def curvature(self) -> Tensor | None:
        """See `EnergyNetwork.curvature`."""
        return torch.from_numpy(self.ema["curvature"].copy()) if "curvature" in self.ema else None


def load_model(address: str, tracking_uri: str | None) -> TrainedModel:
    """The averaged weights of a registered model version, a checkpoint, or the newest checkpoint of a run.

    Raises:
        UserError: the server or the storage does not answer, or there is no such model.
    """
    with tempfile.TemporaryDirectory(prefix="drl-model-") as temporary:
        version = _registered(address, tracking_uri, Path(temporary)) if address.startswith("models:/") else None
        folder = version.folder if version else fetch_checkpoint(address, into=Path(temporary))
        checkpoint = read_checkpoint(folder)
        checksums: dict[str, Any] = json.loads((folder / CHECKSUMS).read_text())
        return TrainedModel(
            experiment=checkpoint.experiment,
            step=checkpoint.state.step,
            ema={name: tensor.numpy() for name, tensor in checkpoint.tensors["ema"].items()},
            ema_sha256=checksums[part_file("ema")]["sha256"],
            config_sha256=checksums[CONFIG]["sha256"],
            version=version,
        )


def averaged_network(
    experiment: Experiment, ema: Mapping[str, NDArray[np.float32]], device: torch.device
) -> EnergyNetwork:
    """The network at its averaged weights, for sampling."""
    # Copies: arrays from elsewhere, such as Ray's object store, cannot be written to.
    averaged = {name: torch.from_numpy(values.copy()) for name, values in ema.items()}
    # Settled on the CPU, so that every device samples the same network.
    network = load_averaged(build_network(experiment), averaged)
    network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network


def frozen_engine(
    experiment: Experiment,
    ema: Mapping[str, NDArray[np.float32]],
    device: torch.device,
    *,
    precision: Literal["float32", "bfloat16"] = "float32",
    dtype: torch.dtype = torch.float32,
    cuda_graph: bool = True,
) -> GradientEngine:
    """Raw outputs and image gradients of a network whose averaged weights never change.

    Args:
        experiment: the model's.
        ema: averaged weights.
        device: where it computes.
        precision: arithmetic of the network, as `EngineConfig.precision`.
        dtype: of the weights.
        cuda_graph: capture the gradient on CUDA. A graph holds float32 images, and the weights of one set of levels.
    """
    network = averaged_network(experiment, ema, device).to(dtype=dtype)
    return GradientEngine(network, EngineConfig(precision=precision, cuda_graph=cuda_graph), is_frozen=True)


def check_finite(values: Tensor, what: str, *, remedy: str, expected: str = "finite pixels") -> None:
    """Return if everything that a model made is finite.

    Args:
        values: of any shape.
        what: what they are, for the message.
        remedy: what to do if they are not.
        expected: what they should be.

    Raises:
        UserError: some are not.
    """
    if not bool(values.isfinite().all()):
        raise UserError(what, got="values that are not finite", expected=expected, remedy=remedy)


def _registered(address: str, tracking_uri: str | None, into: Path) -> ResolvedModel:
    from drl_dist.tracking.registry import resolve_model

    return resolve_model(address, tracking_uri, into)
