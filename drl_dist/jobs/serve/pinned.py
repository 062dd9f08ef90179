"""The model of a server, pinned: replicas that start later serve no other."""

from __future__ import annotations

from dataclasses import dataclass

from drl_dist.checkpoints.storage import newest_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.jobs.serve.options import ReplicaOptions
from drl_dist.library.model import Model
from drl_dist.library.stored import TrainedModel, load_model


@dataclass(frozen=True)
class PinnedModel:
    """Which weights are meant.

    Args:
        address: a registered version, a checkpoint or a saved model.
        ema_sha256: of the averaged weights.
    """

    address: str
    ema_sha256: str


def pin_model(options: ReplicaOptions) -> tuple[PinnedModel, TrainedModel]:
    """What the options name now, be it the latest version or the newest checkpoint of a run that goes on.

    Raises:
        UserError: as `drl_dist.library.stored.load_model`.
    """
    trained = load_model(options.model, options.tracking_uri, options.allow_code)
    address = options.model
    if trained.version is not None:
        address = f"models:/{trained.version.name}/{trained.version.version}"
    elif (newest := newest_checkpoint(address)) is not None and newest.step != trained.step:
        # It was written between the two looks.
        return pin_model(options)
    elif newest is not None:
        address = newest.url
    return PinnedModel(address, trained.ema_sha256), trained


def load_pinned(pinned: PinnedModel, options: ReplicaOptions, device: str) -> Model:
    """The model on a device.

    Raises:
        UserError: it cannot be loaded, or has other weights by now.
    """
    trained = load_model(pinned.address, options.tracking_uri, options.allow_code)
    if trained.ema_sha256 != pinned.ema_sha256:
        raise UserError(
            f"model {pinned.address}",
            got=f"weights of SHA-256 {trained.ema_sha256[:12]}",
            expected=f"{pinned.ema_sha256[:12]}, which the server was started with",
            remedy="start the server again",
        )
    return Model(trained.experiment, trained.ema, step=trained.step, device=device)
