"""A trained model as arrays on this machine, from the registry, a checkpoint, a run's folder or a saved model.

Jobs hand these arrays to their workers; `drl_dist.library.load` makes a `Model` of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drl_dist.checkpoints.format import CHECKSUMS, CONFIG, part_file, read_checkpoint
from drl_dist.checkpoints.storage import fetch_checkpoint
from drl_dist.common.waiting import Waiting
from drl_dist.config.import_paths import check_allowed
from drl_dist.config.tree import Experiment
from drl_dist.library.folder import saved_model

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
    data_fingerprint: str = ""
    """Of the data that it was trained on."""

    @property
    def curvature(self) -> Tensor | None:
        """See `EnergyNetwork.curvature`."""
        return torch.from_numpy(self.ema["curvature"].copy()) if "curvature" in self.ema else None


def load_model(address: str, tracking_uri: str | None, allow_code: Collection[str] = ()) -> TrainedModel:
    """The averaged weights of a registered model version, a checkpoint, the newest one of a run, or a saved model.

    Args:
        address: ``models:/...``, or a folder's URL.
        tracking_uri: MLflow server of the registry.
        allow_code: import paths that the model's config may name; see `drl_dist.config.import_paths`.

    Raises:
        UserError: the server or the storage does not answer, there is no such model, or it names code that was not
            allowed.
    """
    with tempfile.TemporaryDirectory(prefix="drl-model-") as temporary, Waiting("model", stream=sys.stderr) as waiting:
        waiting.begin(f"reading {address}", is_told=False)
        if not address.startswith("models:/") and (saved := saved_model(address, allow_code)) is not None:
            return TrainedModel(
                experiment=saved.experiment,
                step=saved.step,
                ema={name: tensor.numpy() for name, tensor in saved.weights.items()},
                ema_sha256=saved.weights_sha256,
                config_sha256=saved.config_sha256,
                version=None,
                data_fingerprint=str(saved.data.get("fingerprint", "")),
            )
        version = _registered(address, tracking_uri, Path(temporary)) if address.startswith("models:/") else None
        folder = version.folder if version else fetch_checkpoint(address, into=Path(temporary))
        checkpoint = read_checkpoint(folder)
        check_allowed(checkpoint.experiment, allow_code, f"model {address}")
        checksums: dict[str, Any] = json.loads((folder / CHECKSUMS).read_text())
        return TrainedModel(
            experiment=checkpoint.experiment,
            step=checkpoint.state.step,
            ema={name: tensor.numpy() for name, tensor in checkpoint.tensors["ema"].items()},
            ema_sha256=checksums[part_file("ema")]["sha256"],
            config_sha256=checksums[CONFIG]["sha256"],
            version=version,
            data_fingerprint=checkpoint.state.data_fingerprint,
        )


def _registered(address: str, tracking_uri: str | None, into: Path) -> ResolvedModel:
    from drl_dist.tracking.registry import resolve_model

    return resolve_model(address, tracking_uri, into)
