"""Which labels the network is given in a training step: not all, for it is to learn f(y, t) without any as well."""

from __future__ import annotations

import torch
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.config.condition import ConditionConfig
from drl_dist.diffusion.noise import Noise, Purpose
from drl_dist.energy.condition import vectors_of


def given_labels(config: ConditionConfig, noise: Noise, positions: Tensor, labels: Tensor | None) -> Tensor | None:
    """Labels for the network, float32 (B, size); None for energies of images alone.

    A share `dropout` of the images has none. Of the others with attributes, each attribute is kept with a probability
    that is drawn for the image, so that all numbers of known attributes are equally frequent.

    Args:
        noise: keyed by position, so that the labels of an image are dropped alike on any number of workers.
        positions: (B,) in the stream of samples.
        labels: of the batch, see `Batch.labels`.

    Raises:
        UserError: the batch has none.
    """
    if config.kind == "none":
        return None
    if labels is None:
        raise UserError(
            "batch of images",
            got="no labels",
            expected=f"labels, since condition.kind is {config.kind}",
            remedy="give the data labels, or train with condition.kind none",
        )
    vectors = vectors_of(labels.to(positions.device, non_blocking=True), config.kind, config.size)
    numbers = noise.uniform(Purpose.LABEL, positions, 0, (0,), 2 + config.size)[0]
    is_kept = (numbers[:, 0] >= config.dropout)[:, None]
    if config.kind == "attributes":
        is_kept = is_kept & (numbers[:, 2:] < numbers[:, 1:2])
    return torch.where(is_kept, vectors, torch.zeros_like(vectors))
