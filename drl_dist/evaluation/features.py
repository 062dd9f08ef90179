"""Features of images by a feature network, the input of FID, KID and the inception score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a set of images, on the CPU."""

    values: Tensor
    """(N, D) float32."""
    logits: Tensor | None
    """(N, K) float32, None if the network has no classes."""

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network that turns images into features.

    Args:
        name: name of the network, as the user gave it.
        identity: cache key, different for any two networks whose features may differ.
        channels: colour channels of its input, 1 or 3.
        device: device of the network.
        extract: uint8 images (B, channels, H, W) on `device` -> features (B, D), and logits (B, K) or None.
    """

    name: str
    identity: str
    channels: int
    device: torch.device
    extract: Callable[[Tensor], tuple[Tensor, Tensor | None]]

    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images (B, C, H, W); grey ones are repeated for a network of three channels.

        Raises:
            UserError: the images have more channels than the network takes, or its output is not a finite (B, D).
        """
        images = with_channels(images, self.channels, network=self.name).to(self.device)
        with torch.no_grad(), _without_tf32():
            values, logits = self.extract(images)
        for what, tensor in (("features", values), ("logits", logits)):
            if tensor is not None:
                self._check(what, tensor, len(images))
        return Features(values.float().cpu(), None if logits is None else logits.float().cpu())

    def _check(self, what: str, tensor: Tensor, count: int) -> None:
        is_matrix = tensor.dim() == 2 and len(tensor) == count and tensor.is_floating_point()
        if not is_matrix or not bool(tensor.isfinite().all()):
            raise UserError(
                f"feature network {self.name}",
                got=f"{what} that are not finite"
                if is_matrix
                else f"{what} of shape {tuple(tensor.shape)} and type {tensor.dtype} for {counted(count, 'image')}",
                expected=f"finite floating-point numbers of shape ({count}, D)",
                remedy="use another network, or other weights",
            )


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Let convolutions and products of float32 round to nothing shorter, and leave torch as it was.

    TF32 keeps only ten bits of the mantissa, so scores would depend on the type of GPU. These are torch's newer
    switches: of the older ones even reading raises an error once somebody has used the newer.
    """
    cudnn: Any = torch.backends.cudnn
    switches: tuple[Any, ...] = (cudnn.conv, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def with_channels(images: Tensor, channels: int, *, network: str) -> Tensor:
    """Images (B, C, H, W) with as many channels as a network takes: grey is repeated, colour is never dropped.

    Raises:
        UserError: the images have colours, and the network takes only grey.
    """
    if images.shape[1] == channels:
        return images
    if images.shape[1] != 1:
        raise UserError(
            f"feature network {network}",
            got=f"images of {images.shape[1]} channels",
            expected=f"images of {channels} channels",
            remedy="use a network made for these images",
        )
    return images.expand(-1, channels, -1, -1)


def features_of(
    network: FeatureNetwork, batches: Iterable[Tensor], advance: Callable[[int], object] = lambda images: None
) -> Features:
    """Features of many batches of uint8 images (B, C, H, W), in their order.

    Args:
        advance: called with the number of images after each batch.

    Raises:
        UserError: see `FeatureNetwork.__call__`.
    """
    parts: list[Features] = []
    for images in batches:
        parts.append(network(images))
        advance(len(images))
    logits = [part.logits for part in parts if part.logits is not None]
    return Features(torch.cat([part.values for part in parts]), torch.cat(logits) if logits else None)
