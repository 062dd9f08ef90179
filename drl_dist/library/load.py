"""A trained model from wherever it is kept."""

from __future__ import annotations

import os
from collections.abc import Collection

import torch

from drl_dist.common.errors import UserError
from drl_dist.library.arguments import place as place_of
from drl_dist.library.engine import usable_device
from drl_dist.library.extras import needing
from drl_dist.library.model import Model


def load(
    address: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    tracking_uri: str | None = None,
    allow_code: Collection[str] = (),
) -> Model:
    """A trained model.

    Args:
        address: ``models:/NAME@latest``, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` in an MLflow registry; or
            a folder, by its path or its file://, gs:// or s3:// URL: a checkpoint, a run, of which the newest complete
            checkpoint is taken, or a saved model, as `Model.save` writes it and model hubs keep it.
        device: where it computes; `Model.to` moves it.
        tracking_uri: MLflow server of ``models:/`` addresses, by default that of MLFLOW_TRACKING_URI.
        allow_code: import paths, ``"MODULE:NAME"``, of a network, kernel or objective that is not part of drl_dist, and
            that the model's config may import. A model that names others is refused: loading runs no code unasked.

    Raises:
        UserError: there is no such model, a file of it is missing or damaged, the server or the storage does not
            answer, the device cannot be used, or a package that this address needs is not installed.
    """
    place = place_of("address", address, "a folder, its URL, or models:/NAME@latest")
    chosen = usable_device(device)
    with needing("files", "loading a model"):
        import safetensors  # noqa: F401

        import drl_dist.checkpoints.format
    if place.startswith("models:/"):
        with needing("tracking", f"model {place}"):
            import drl_dist.tracking.registry  # noqa: F401
        return _stored(place, tracking_uri, chosen, allow_code)
    extra = "data" if "://" in place and not place.startswith("file:") else "files"
    with needing(extra, f"model {place}"):
        return _saved(place, chosen, allow_code) or _stored(place, tracking_uri, chosen, allow_code)


def _saved(place: str, device: torch.device, allow_code: Collection[str]) -> Model | None:
    """The saved model in a folder; None if the folder holds none."""
    from drl_dist.data.filesystem import Folder, check_reachable
    from drl_dist.library.folder import saved_model

    check_reachable(place)
    local = Folder(place).local
    if local is not None and not local.exists():
        raise UserError(
            f"model {place}",
            got="no such folder",
            expected="a checkpoint, a run, a saved model, or models:/NAME@latest",
            remedy="correct the address",
        )
    found = saved_model(place, allow_code)
    if found is None:
        return None
    return Model(found.experiment, found.weights, step=found.step, device=device, data=found.data)


def _stored(place: str, tracking_uri: str | None, device: torch.device, allow_code: Collection[str]) -> Model:
    """The model of a checkpoint."""
    from drl_dist.library.stored import load_model

    stored = load_model(place, tracking_uri, allow_code)
    data = {"fingerprint": stored.data_fingerprint}
    return Model(stored.experiment, stored.ema, step=stored.step, device=device, data=data)
