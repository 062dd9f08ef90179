"""Pictures that visitors send, turned into images of the model's size."""

from __future__ import annotations

import base64
import binascii
import io
import threading

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.data.pixels.pictures import PictureError, PixelRules, decoding, read_picture

MAX_PIXELS = 32 * 2**20
"""Of a picture, before it is made small: four bytes each while it is decoded."""
FORMATS = ("PNG", "JPEG", "WEBP")
_WHITE = 128
_ONE_AT_A_TIME = threading.Lock()
"""While it is decoded, a picture takes far more memory than its file."""


def read_image(text: str, shape: tuple[int, int, int], *, fit: bool) -> Tensor:
    """A picture as the model has them, uint8 (C, H, W).

    Args:
        text: the file in base64.
        shape: (C, H, W).
        fit: cut the largest square out of its middle and resize it; else it must have the size already.

    Raises:
        UserError: it is no picture, a damaged one, too large, or not of this size.
    """
    _, height, width = shape
    with _ONE_AT_A_TIME:
        picture = _picture(text, "image")
        if fit:
            picture = _fitted(picture, shape)
    _check_size(picture, "image", (width, height), 'send one of this size, or let it be fitted with "fit": true')
    pixels = np.array(_in_channels(picture, shape[0]))
    return torch.from_numpy(pixels).reshape(height, width, shape[0]).permute(2, 0, 1).contiguous()


def read_mask(text: str, shape: tuple[int, int, int]) -> Tensor:
    """A mask, bool (H, W), true where a picture is white: there pixels are to be filled in.

    Args:
        text: the file in base64.
        shape: (C, H, W) of the image.

    Raises:
        UserError: it is no picture, a damaged one, too large, or not of this size.
    """
    with _ONE_AT_A_TIME:
        picture = _picture(text, "mask")
    _check_size(picture, "mask", (shape[2], shape[1]), "draw it at the size of the model's images")
    return torch.from_numpy(np.array(picture.convert("L")) >= _WHITE)


def _fitted(picture: Image.Image, shape: tuple[int, int, int]) -> Image.Image:
    """The middle square, as ``datasets_prep`` makes it of what models are trained on."""
    channels, height, width = shape
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = _in_channels(picture.crop((left, top, left + side, top + side)), channels)
    return square.resize((width, height), Image.Resampling.BILINEAR)


def _in_channels(picture: Image.Image, channels: int) -> Image.Image:
    return picture.convert("L" if channels == 1 else "RGB")


def _picture(text: str, what: str) -> Image.Image:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(
            what, got="text that is not base64", expected="a picture file in base64", remedy="encode the file"
        ) from error
    try:
        with decoding(), Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            # Of the header alone: nothing larger is ever decoded.
            width, height = opened.size
        if width * height > MAX_PIXELS:
            raise _too_large(what, f"{width}x{height} pixels")
        return read_picture(data, PixelRules(), FORMATS).image
    except PictureError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise _too_large(what, "far more pixels") from error
        raise UserError(
            what,
            got=f"a file that cannot be decoded ({error})",
            expected="an intact " + ", ".join(FORMATS[:-1]) + " or " + FORMATS[-1],
            remedy="send another picture",
        ) from error


def _too_large(what: str, got: str) -> UserError:
    return UserError(what, got=got, expected=f"at most {MAX_PIXELS} pixels", remedy="send a smaller picture")


def _check_size(picture: Image.Image, what: str, wanted: tuple[int, int], remedy: str) -> None:
    if picture.size != wanted:
        got, expected = (f"{width}x{height} pixels" for width, height in (picture.size, wanted))
        raise UserError(what, got=got, expected=expected, remedy=remedy)
