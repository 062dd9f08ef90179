"""Masks of hidden pixels: a named region, a random share, or a picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.common.validation import file_of
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.data.pixels.pictures import PictureError, PixelRules, decoding, open_verified, read_picture
from drl_dist.diffusion.noise import Noise, Purpose
from drl_dist.jobs.edit.options import random_share

_MODES = ("1", "L", "P", "RGB")
_WHITE = 128
MAX_MASK_BYTES = 64 * 2**20


def hidden_pixels(mask: str, resolution: int, noise: Noise, image_ids: Tensor) -> Tensor:
    """What a mask hides of each image, bool (N, 1, H, W), True where a pixel is to be filled in.

    Args:
        mask: a shape's name, random-NN% or a PNG file; see `InpaintOptions.mask`.
        resolution: height and width of the images.
        noise: chooses the pixels of a random mask, others for each image.
        image_ids: (N,) int64.

    Raises:
        UserError: the file is not there or no picture of this size, or the mask hides all pixels or none.
    """
    shape = (len(image_ids), 1, resolution, resolution)
    share = random_share(mask)
    if share is not None:
        hidden = _random(share, resolution, noise, image_ids)
    elif mask.lower().endswith(".png"):
        hidden = _read(mask, resolution).to(image_ids.device).expand(shape)
    else:
        hidden = _region(mask, resolution).to(image_ids.device).expand(shape)
    count = int(hidden[0].sum())
    if not 0 < count < resolution**2:
        raise UserError(
            f"mask {mask}",
            got=f"{count} of {resolution**2} pixels to fill in",
            expected="some pixels to fill in and some to keep",
            remedy="choose another mask",
        )
    return hidden


def _region(name: str, size: int) -> Tensor:
    half, quarter = size // 2, size // 4
    rows, columns = {
        "left-half": (slice(size), slice(half)),
        "right-half": (slice(size), slice(half, size)),
        "top-half": (slice(half), slice(size)),
        "bottom-half": (slice(half, size), slice(size)),
        "centre": (slice(quarter, size - quarter), slice(quarter, size - quarter)),
    }[name]
    hidden = torch.zeros(size, size, dtype=torch.bool)
    hidden[rows, columns] = True
    return hidden


def _random(share: float, size: int, noise: Noise, image_ids: Tensor) -> Tensor:
    """Hides the same number of pixels of every image: those with the smallest numbers."""
    count = round(share * size**2)
    numbers = noise.normal(Purpose.HIDE, image_ids, 0, (0,), (size**2,))[0]
    ranks = numbers.argsort(dim=1, stable=True).argsort(dim=1)
    return (ranks < count).reshape(-1, 1, size, size)


def _read(place: str, size: int) -> Tensor:
    """A PNG file's pixels, True where they are white."""
    # A single file lies in a folder, which is what deadlines and retries are made for.
    folder, name = file_of(place, "mask")
    where = Folder(folder)
    check_reachable(where.url)
    try:
        held = where.sizes().get(name)
        if held is not None and held > MAX_MASK_BYTES:
            raise _wrong(place, f"{held} bytes", f"at most {MAX_MASK_BYTES} bytes")
        data = where.read(name)
    except FileNotFoundError as error:
        raise _wrong(place, "no such file", "a PNG file") from error
    try:
        with decoding():
            image = open_verified(data, formats=("PNG",))
            transparent = image.has_transparency_data
        # Only the header has been read: nothing larger than the images is ever decoded.
        if image.size != (size, size):
            width, height = image.size
            raise _wrong(place, f"{width}x{height} pixels", f"{size}x{size} pixels as the model has")
        if image.mode not in _MODES or transparent:
            mode = f"mode {image.mode}" + (" with a transparent colour" if image.mode in _MODES else "")
            raise _wrong(place, mode, "black and white without transparency")
        picture = read_picture(data, PixelRules(), formats=("PNG",))
        with decoding():
            pixels = np.asarray(picture.image.convert("L"))
    except PictureError as error:
        raise _wrong(place, f"bytes that are no picture ({error})", "a PNG file") from error
    return torch.from_numpy(pixels >= _WHITE)


def _wrong(place: str, got: str, expected: str) -> UserError:
    return UserError(f"mask {place}", got=got, expected=expected, remedy="choose another mask")
