"""Images as users have them, turned into those of the method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.common.images import to_unit_range
from drl_dist.library.arguments import check, real

GREY_LEVELS = 127.5
"""Grey levels in a unit of the data's scale, which is [-1, 1]."""
Images: TypeAlias = Tensor | NDArray[np.generic]
"""(N, C, H, W), or (N, H, W) of one channel: uint8, or floating point in [0, 1]."""

_EXPECTED = "a tensor or an array of images (N, C, H, W) with 1 or 3 channels, or (N, H, W), of equal height and width"


def given_images(images: object, *, what: str = "images", shape: Sequence[int] | None = None) -> Tensor:
    """A user's images as the data have them.

    Args:
        images: as `Images`.
        what: they are, for messages.
        shape: (C, H, W) that a model has; any by default.

    Returns:
        uint8 (N, C, H, W) on the device where they were; floating-point pixels are rounded to the nearest of 256 grey
        levels.

    Raises:
        UserError: they have another type, shape or range.
    """
    given = _shaped(images, what, shape)
    if given.dtype == torch.uint8:
        return given
    low, high = (float(value) for value in given.aminmax())
    if not (low >= 0 and high <= 1):
        raise UserError(
            what,
            got=f"floating-point pixels from {low:.4g} to {high:.4g}",
            expected="pixels in [0, 1], or uint8",
            remedy="scale them, as (images + 1) / 2 does for pixels in [-1, 1]",
        )
    return (given * 255).round().to(torch.uint8)


def given_noisy(images: object, *, what: str, shape: Sequence[int]) -> Tensor:
    """A user's noisy images, whose floating-point pixels may lie outside [0, 1]; float32 (N, C, H, W), where the data
    lie in [-1, 1]. Arguments and errors as of `given_images`."""
    given = _shaped(images, what, shape)
    if given.dtype == torch.uint8:
        return to_unit_range(given)
    if not bool(given.isfinite().all()):
        raise UserError(what, got="pixels that are not finite", expected="finite pixels", remedy="correct them")
    return 2 * given.float() - 1


def given_noise_std(noise_std: object, limits: tuple[float, float]) -> float:
    """A standard deviation of noise in units of the method's images.

    Args:
        noise_std: in grey levels of 255.
        limits: between which it must lie, see `PosteriorSampler.noise_range`.

    Raises:
        UserError: it is no number, or does not lie there.
    """
    smallest, largest = limits
    std = real("noise_std", noise_std, "in grey levels of 255") / GREY_LEVELS
    check(
        "noise_std",
        noise_std,
        f"more than {smallest * GREY_LEVELS:.3g} and less than {largest * GREY_LEVELS:.4g} grey levels, the noise "
        "of the model's lowest level and of its prior",
        smallest < std < largest,
    )
    return std


def given_mask(mask: object, *, count: int, resolution: int) -> Tensor:
    """Which pixels are hidden, bool (N or 1, 1, H, W).

    Args:
        mask: bool (H, W), (N, H, W) or (N, 1, H, W), true where a pixel is hidden.
        count: N.
        resolution: H and W.

    Raises:
        UserError: it has another type or shape, or hides all or none of an image.
    """
    given = mask if isinstance(mask, Tensor) else torch.from_numpy(mask) if isinstance(mask, np.ndarray) else None
    size = (resolution, resolution)
    fits = [size, (count, *size), (count, 1, *size)]
    if given is None or given.dtype != torch.bool or tuple(given.shape) not in fits:
        got = type(mask).__name__ if given is None else f"{given.dtype} of shape {tuple(given.shape)}"
        raise UserError(
            "mask",
            got=got,
            expected=f"bool of shape {', '.join(map(str, fits))}, true where a pixel is to be filled in",
            remedy="correct the mask",
        )
    hidden = given.reshape(-1, 1, *size)
    shares = hidden.float().mean((1, 2, 3))
    if not bool(((shares > 0) & (shares < 1)).all()):
        raise UserError(
            "mask",
            got="one that hides all pixels of an image, or none",
            expected="some pixels to fill in and some to keep",
            remedy="correct the mask",
        )
    return hidden


def _shaped(images: object, what: str, shape: Sequence[int] | None) -> Tensor:
    """uint8 or floating point (N, C, H, W), finite or not, of the shape that is wanted."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "buif":
        images = torch.from_numpy(np.ascontiguousarray(images.astype(images.dtype.newbyteorder("="), copy=False)))
    if not isinstance(images, Tensor):
        got = f"an array of {images.dtype}" if isinstance(images, np.ndarray) else type(images).__name__
        raise UserError(what, got=got, expected=_EXPECTED, remedy="give a torch.Tensor or a numpy.ndarray")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UserError(
            what,
            got=f"pixels of {images.dtype}",
            expected="uint8, or floating point in [0, 1]",
            remedy="convert them, for example with .to(torch.uint8) for pixels from 0 to 255",
        )
    given = images.detach()
    given = given[:, None] if given.dim() == 3 else given
    if given.dim() != 4 or given.shape[1] not in (1, 3) or given.shape[2] != given.shape[3] or not len(given):
        is_last = given.dim() == 4 and given.shape[3] in (1, 3)
        raise UserError(
            what,
            got=f"shape {tuple(images.shape)}" + (" with channels last" if is_last else ""),
            expected=_EXPECTED,
            remedy="move the channels, as images.permute(0, 3, 1, 2) of a tensor or images.transpose(0, 3, 1, 2) of an "
            "array does"
            if is_last
            else "give images of this shape",
        )
    if shape is not None and tuple(given.shape[1:]) != tuple(shape):
        raise UserError(
            what,
            got=f"images of shape {tuple(given.shape[1:])}",
            expected=f"{tuple(shape)}, as the model has",
            remedy="give images of the model's size and channels",
        )
    return given


def given_classes(labels: object, *, count: int, num_classes: int | None = None) -> Tensor:
    """Numbers of classes as a batch has them, int64 (count,) on the CPU.

    Args:
        labels: a tensor, an array or a sequence of whole numbers, -1 for an image without a label.
        count: images that they are of.
        num_classes: that a model knows; any by default.

    Raises:
        UserError: they are of another type or number, or beyond the classes.
    """
    expected = f"{count} whole numbers, one for each image, from -1 (no label)"
    expected += "" if num_classes is None else f" to {num_classes - 1}"
    try:
        given = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError("labels", got=type(labels).__name__, expected=expected, remedy="give numbers") from error
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool or given.shape != (count,):
        raise UserError(
            "labels", got=f"{given.dtype} of shape {tuple(given.shape)}", expected=expected, remedy="give one each"
        )
    low, high = (int(value) for value in given.aminmax())
    if low < -1 or (num_classes is not None and high >= num_classes):
        raise UserError("labels", got=f"numbers from {low} to {high}", expected=expected, remedy="correct them")
    return given.long()


def given_attributes(values: object, *, shape: tuple[int, ...], what: str = "labels") -> Tensor:
    """Values of attributes as a batch has them, int64 of a shape on the CPU: 1 (true), -1 (false) or 0 (unknown).

    Args:
        values: a tensor, an array, a sequence or a single value; bool, or 1, -1 and 0.
        shape: that they are to have; a single value stands for all of them.
        what: they are, for messages.

    Raises:
        UserError: they have another type or shape, or are other numbers.
    """
    expected = f"bool, or 1 (true), -1 (false) and 0 (unknown), of shape {shape}"
    try:
        given = torch.as_tensor(values).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(what, got=type(values).__name__, expected=expected, remedy="give such values") from error
    if given.is_floating_point() or given.is_complex() or given.shape not in (shape, ()):
        got = f"{given.dtype} of shape {tuple(given.shape)}"
        raise UserError(what, got=got, expected=expected, remedy="give such values")
    given = 2 * given.long() - 1 if given.dtype == torch.bool else given.long()
    if bool((given.abs() > 1).any()):
        got = f"numbers from {int(given.min())} to {int(given.max())}"
        raise UserError(what, got=got, expected=expected, remedy="correct them")
    return given.expand(shape)
