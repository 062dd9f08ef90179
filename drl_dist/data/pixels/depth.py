"""Conversion of grey values of more than 8 bits to 8, scaled from the range that the file or the user gives."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SCALED = "grey of 16 bits scaled to 8"
RANGED = "grey values of a range scaled to 8 bits"
CLIPPED = "values outside the range clipped"
_DARK_BITS = (10, 12, 14)
DARK = {bits: f"grey of 16 bits with no value above {2**bits - 1}, therefore dark" for bits in _DARK_BITS}
"""Treatments by number of bits in use: for images that may have fewer than 16 bits without declaring it."""
_BITS, _PHOTOMETRIC, _MIN, _MAX, _FORMAT, _SMIN, _SMAX = 258, 262, 280, 281, 339, 340, 341
_UNSIGNED, _SIGNED = 1, 2
_WHITE_IS_ZERO = 0
PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG2000_SIZES = b"\xff\x4f\xff\x51"


class PictureError(ValueError):
    """A picture that cannot be used; the message gives the reason, and the class of a decoder's exception."""


@dataclass(frozen=True)
class Component:
    """Depth and sign of one channel of a JPEG 2000 file, from its header."""

    bits: int
    signed: bool


def jpeg2000_components(data: bytes) -> tuple[Component, ...]:
    """The channels of a JPEG 2000 file, in order; none if its header cannot be found."""
    start = data.find(_JPEG2000_SIZES)
    if start < 0 or len(data) < start + 42:
        return ()
    (count,) = struct.unpack_from(">H", data, start + 40)
    sizes = data[start + 42 : start + 42 + 3 * count : 3]
    return tuple(Component((size & 0x7F) + 1, bool(size & 0x80)) for size in sizes)


def is_deep(image: Image.Image, components: Sequence[Component]) -> bool:
    """Whether an opened image holds grey values other than 0 (black) to 255 (white).

    Args:
        image: the image, not decoded yet.
        components: channels of a JPEG 2000 file.
    """
    is_signed = image.mode == "L" and (_signed_bytes(image) or any(component.signed for component in components))
    return image.mode.startswith(("I", "F")) or is_signed


def to_8_bits(
    image: Image.Image,
    data: bytes,
    maximum: int | None,
    value_range: tuple[float, float] | None,
    component: Component | None,
) -> tuple[NDArray[np.uint8], list[str]]:
    """Convert grey values to 0 (black) to 255 (white).

    Args:
        image: a decoded image for which `is_deep` is true.
        data: the content of its file.
        maximum: the largest value that a PPM file allows; Pillow uses it to scale values to 16 bits.
        component: the only channel of a JPEG 2000 file; Pillow shifts values up to 8 or 16 bits, and signed ones above
            0.
        value_range: the values of black and white; if None, the range given by the file, or that of unsigned 16 bits.

    Returns:
        uint8 (H, W), and the treatments applied, as the constants above.

    Raises:
        PictureError: the range of the values is not known, or some are NaN.
    """
    values = _values(image) if component is None else _jpeg2000_values(image, component)
    done: list[str] = []
    if value_range is not None:
        if maximum is not None:
            # Undo Pillow's scaling.
            values = np.rint(values * (maximum / 65535))
        low, high = value_range
        done.append(RANGED)
    elif component is not None and component.signed:
        raise PictureError(_without_range(image, component))
    elif component is not None and component.bits < 16:
        low, high = 0.0, 2.0**component.bits - 1
        done.append(RANGED)
    elif (said := _said_range(image, data, values)) is not None:
        low, high = said
        done.append(RANGED)
    elif image.mode.startswith("I;16") or maximum is not None:
        low, high = 0.0, 65535.0
        # Pillow has scaled up the values of a PPM file that declares fewer bits.
        is_whole = maximum in (None, 65535)
        bits = next((bits for bits in _DARK_BITS if is_whole and values.max() < 2**bits), None)
        done.append(SCALED if bits is None else DARK[bits])
    else:
        raise PictureError(_without_range(image, component))
    if np.isnan(values).any():
        raise PictureError("pixels that are no numbers")
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    if scaled.min() < 0 or scaled.max() > 255:
        done.append(CLIPPED)
    pixels = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return (255 - pixels if _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO else pixels), done


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """(type, all bytes, whether the checksum matches) of each chunk of a PNG file, up to the first incomplete one."""
    place = len(PNG_START)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        whole = data[place : place + 12 + length]
        if len(whole) < 12 + length:
            return
        yield whole[4:8], whole, zlib.crc32(whole[4:-4]) == int.from_bytes(whole[-4:], "big")
        place += 12 + length


def _values(image: Image.Image) -> NDArray[Any]:
    values = np.asarray(image)
    if _signed_bytes(image):
        return values.view(np.int8)
    # Pillow stores unsigned 32-bit values as signed ones.
    return values.view(np.uint32) if _unsigned_32(image) else values


def _jpeg2000_values(image: Image.Image, component: Component) -> NDArray[Any]:
    values = np.asarray(image).astype(np.int32) >> ((8 if image.mode == "L" else 16) - component.bits)
    return values - 2 ** (component.bits - 1) if component.signed else values


def _said_range(image: Image.Image, data: bytes, values: NDArray[Any]) -> tuple[float, float] | None:
    if image.format == "PNG":
        return _png_range(data, values)
    if image.format != "TIFF":
        return None
    # SMinSampleValue and SMaxSampleValue define a range. By the standard, MinSampleValue and MaxSampleValue are only
    # statistics, and a picture must not be stretched to its own extremes, so they count only as a number of bits.
    low, high = _number(_tag(image, _SMIN)), _number(_tag(image, _SMAX))
    if low is not None and high is not None and np.isfinite([low, high]).all() and low < high:
        return low, high
    if image.mode.startswith("I;16"):
        bits = _number(_tag(image, _BITS))
        maximum = 2.0**bits - 1 if bits is not None and bits < 16 else _number(_tag(image, _MAX))
        if maximum is not None and maximum in [2**bits - 1 for bits in range(9, 16)] and values.max() <= maximum:
            return 0.0, maximum
    return None


def _png_range(data: bytes, values: NDArray[Any]) -> tuple[float, float] | None:
    """0 to 2**sBIT - 1, if the values are those of that many bits.

    By the standard a writer scales values up to 16 bits, repeating their upper bits below, so that the range is 16 bits
    whatever sBIT is. Some writers store the values unscaled.
    """
    bits = next((whole[8] for name, whole, _ in png_chunks(data) if name == b"sBIT" and len(whole) > 12), 16)
    if not 8 < bits < 16 or values.max() >= 2**bits:
        return None
    numbers = values.astype(np.uint32)
    is_scaled_up = not (numbers & (2 ** (16 - bits) - 1) & ~(numbers >> bits)).any()
    return None if is_scaled_up and numbers.any() else (0.0, 2.0**bits - 1)


def _signed_bytes(image: Image.Image) -> bool:
    # Pillow reads them as unsigned bytes.
    return image.mode == "L" and image.format == "TIFF" and _number(_tag(image, _FORMAT)) == _SIGNED


def _unsigned_32(image: Image.Image) -> bool:
    bits, kind = _number(_tag(image, _BITS)), _number(_tag(image, _FORMAT))
    return image.mode == "I" and image.format == "TIFF" and bits == 32 and kind in (None, _UNSIGNED)


def _tag(image: Image.Image, number: int) -> object:
    return getattr(image, "tag_v2", {}).get(number)


def _number(value: object) -> float | None:
    if isinstance(value, tuple) and value:
        value = value[0]
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _without_range(image: Image.Image, component: Component | None) -> str:
    kind = f"whole numbers of {component.bits} bits with a sign" if component is not None else _kind(image)
    return f"{kind} without a range that says what is black and what is white (an option can give one)"


def _kind(image: Image.Image) -> str:
    if image.mode.startswith("F"):
        return "floating-point values"
    bits = {"TIFF": _number(_tag(image, _BITS))}.get(image.format or "")
    return "whole numbers" + (f" of {bits:.0f} bits" if bits else "") + ("" if _unsigned_32(image) else " with a sign")
