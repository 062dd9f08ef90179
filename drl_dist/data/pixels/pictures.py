"""Decoding of arbitrary picture files to upright 8-bit pixels without transparency.

Any other treatment of the pixels is reported by one of the constants below, so that callers can count treatments.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, TiffTags

from drl_dist.data.pixels.depth import PNG_START, PictureError, is_deep, jpeg2000_components, png_chunks, to_8_bits
from drl_dist.data.pixels.misread import put_right, refuse_misread
from drl_dist.data.pixels.png_rows import refuse_missing_rows

TRANSPARENT = "transparent, shown over the background"
CLEAR = "transparent everywhere, therefore nothing but background"
KEY_16 = "a transparent colour of 16 bits, compared by its upper 8"
COLOUR_16 = "16 bits a channel, of which the upper 8 are kept"
DARK_COLOUR_16 = "16 bits a channel with the upper 2 unused, therefore dark"
EXIF = "EXIF data without a readable orientation, taken for upright"
METADATA = "damaged metadata beside sound pixels, left aside"
FRAMES = "several pictures in one file, of which the first is taken"
PROFILE = "a colour profile other than sRGB, colours kept as stored"
GAMMA = "a gamma other than sRGB's, values kept as stored"
INKS = "CMYK, made RGB without its profile"
LAB = "CIELAB, made RGB"

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_GAMMA = 0.45455
_LARGEST_KEPT_PROFILE = 1 << 16
"""Bytes; those of cameras and screens are smaller."""
_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""Chromaticities of sRGB: x and y of white, red, green and blue."""
_PNG_METADATA = {b"bKGD", b"cHRM", b"gAMA", b"hIST", b"iCCP", b"pHYs", b"sPLT", b"sRGB", b"tIME"} | {
    b"iTXt",
    b"tEXt",
    b"zTXt",
}
# Pillow also raises what it logs; without a handler, Python would print these messages for each image.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class PixelRules:
    """Options for pixels that a file does not fully define."""

    background: tuple[int, int, int] = (255, 255, 255)
    """RGB colour behind transparent pixels."""
    value_range: tuple[float, float] | None = None
    """Values of black and white in grey pictures of more than 8 bits; None for the range given by the files."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture."""

    image: Image.Image
    """8 bits a channel, opaque, upright; `convert` makes it L or RGB."""
    treated: tuple[str, ...] = ()
    """Treatments of its pixels, done or omitted, as constants of this module and of `depth`."""


@contextmanager
def decoding() -> Iterator[None]:
    """Turn any exception of a decoder into `PictureError`; only decoders may run inside.

    MemoryError passes through, because it does not mean that the picture is damaged.
    """
    try:
        yield
    except (MemoryError, PictureError):
        raise
    except Exception as error:
        # Pillow's decoders raise exceptions of any class, even AttributeError, and their messages may contain a
        # buffer's address, which differs between processes.
        what = re.sub(r" <_io\.BytesIO[^>]*>", "", str(error))
        raise PictureError(f"{type(error).__name__}: {what}") from error


def open_verified(data: bytes, formats: tuple[str, ...] | None = None) -> ImageFile.ImageFile:
    """An opened image whose checksums match, if its format has any; it is decoded when its pixels are accessed.

    When decoding, Pillow ignores the checksum of a PNG's pixels and returns a wrong image if they are damaged.

    Raises:
        Exception: of any class, from Pillow, if the data are not an image or a damaged one; see `decoding`.
    """
    image = Image.open(io.BytesIO(data), formats=formats)
    if image.format != "PNG":
        return image
    with image:
        image.verify()
    # Pillow cannot use an image any more after verifying it.
    return Image.open(io.BytesIO(data), formats=formats)


def read_picture(data: bytes, rules: PixelRules, formats: tuple[str, ...] | None = None) -> Picture:
    """Decode a picture.

    Args:
        data: content of the file.
        rules: treatment of transparency and depth.
        formats: Pillow's names of the formats that may be read; all if None.

    Raises:
        PictureError: the picture cannot be decoded, or the range of its values is not known.
        MemoryError: there is too little memory.
    """
    with decoding(), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            return _read(data, rules, formats, heard)
        except (MemoryError, PictureError):
            raise
        except Exception as error:
            bare = _without_metadata(data)
            if bare is None:
                raise
            try:
                picture = _read(bare, rules, formats, heard)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - see `decoding`; the damage is not in the metadata
                raise error from None
            return Picture(picture.image, (*picture.treated, METADATA))


def bits_of_colour(image: ImageFile.ImageFile) -> int:
    """Bits per channel of an opened RGB or RGBA image in its file, before it is decoded to 8."""
    for tile in image.tile:
        args = cast(tuple[object, ...], tile[3] if isinstance(tile[3], tuple) else (tile[3],))
        # "BGR;16" has 5 or 6 bits a channel.
        if any(isinstance(part, str) and ";16" in part and part != "BGR;16" for part in args) or tile[0] == "SGI16":
            return 16
        if tile[0].startswith("ppm") and args and isinstance(args[-1], int) and args[-1] > 255:
            return 16
    return 8


def _read(
    data: bytes, rules: PixelRules, formats: tuple[str, ...] | None, heard: list[warnings.WarningMessage]
) -> Picture:
    image = open_verified(data, formats)
    if 0 in image.size:
        raise PictureError(f"{image.width}x{image.height} pixels")
    components = jpeg2000_components(data) if image.format == "JPEG2000" else ()
    refuse_misread(image, components)
    refuse_missing_rows(data)
    treated: list[str] = [FRAMES] if _has_more_frames(image) else []
    deep, bits = is_deep(image, components), bits_of_colour(image)
    maximum = _ppm_maximum(image)
    key_bits, covered = _key_bits(image), _covered(image)
    if image.format == "TIFF":
        # While decoding a TIFF, Pillow reads all EXIF data, which may be damaged, and applies the orientation.
        orientation = _orientation(image, heard)
        exif = image.getexif()
        for group in TiffTags.TAGS_V2_GROUPS:
            if group in exif:
                del exif[group]
        image.load()
    else:
        image.load()
        orientation = _orientation(image, heard)
    treated += _colour_notes(image, data)
    flat = put_right(image, components)
    alpha, compared = _alpha(flat, key_bits, covered)
    if deep:
        pixels, done = to_8_bits(image, data, maximum, rules.value_range, components[0] if components else None)
        treated += done
        flat = Image.fromarray(pixels)
    elif bits == 16 and image.mode in ("L", "RGB", "RGBA", "CMYK"):
        treated.append(_colour_16(image))
    if alpha is not None:
        flat = _over(flat, alpha, rules.background)
        treated += [TRANSPARENT, *compared, *([] if alpha.any() else [CLEAR])]
    elif flat.mode == "LAB":
        flat = flat.convert("RGB")
    if orientation is None:
        treated.append(EXIF)
    elif orientation in _TURNS and image.format != "TIFF":
        flat = flat.transpose(_TURNS[orientation])
    return Picture(flat, tuple(treated))


def _covered(image: ImageFile.ImageFile) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of a GIF's first frame within its canvas, the rest of which is transparent."""
    return image.tile[0][1] if image.format == "GIF" and image.tile else None


def _has_more_frames(image: ImageFile.ImageFile) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - see `decoding`; a later frame is damaged, the first one may be intact
        return True


def _ppm_maximum(image: ImageFile.ImageFile) -> int | None:
    """The largest value that a grey PPM file of more than 8 bits allows."""
    if image.format != "PPM" or image.mode != "I":
        return None
    args = image.tile[0][3]
    return args[-1] if isinstance(args, tuple) and isinstance(args[-1], int) else 65535


def _orientation(image: Image.Image, heard: list[warnings.WarningMessage]) -> int | None:
    """EXIF orientation, 1 to 8; 1 if there is none, None if it cannot be read."""
    damaged = False
    try:
        exif = image.getexif()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - see `decoding`; the pixels may be intact
        # The second call returns the entries before the damage.
        damaged, exif = True, image.getexif()
    damaged |= "exif" in image.info and not len(exif)
    damaged |= any("EXIF" in str(warning.message) for warning in heard)
    value = exif.get(ExifTags.Base.Orientation)
    if value is None:
        return None if damaged else 1
    return value if type(value) is int and 1 <= value <= 8 else None


def _colour_notes(image: Image.Image, data: bytes) -> list[str]:
    notes: list[str] = []
    profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
    if image.mode == "CMYK":
        notes.append(INKS)
    elif image.mode == "LAB":
        notes.append(LAB)
    elif isinstance(profile, bytes) and profile:
        # Large ones are not kept in memory.
        known = _is_srgb if len(profile) <= _LARGEST_KEPT_PROFILE else _is_srgb.__wrapped__
        notes += [] if known(profile) else [PROFILE]
    elif image.format == "PNG" and b"cICP" in data and not _is_srgb_by_numbers(data):
        notes.append(PROFILE)
    elif "srgb" not in image.info:
        primaries = image.info.get("chromaticity", _PRIMARIES)
        if not np.allclose(primaries, _PRIMARIES, atol=0.005):
            notes.append(PROFILE)
        if isinstance(gamma, float) and abs(gamma - _GAMMA) > 0.01:
            notes.append(GAMMA)
    return notes


def _is_srgb_by_numbers(data: bytes) -> bool:
    """Whether a PNG file, by its code points of ITU-T H.273, has no colour space other than sRGB."""
    said = (whole[8:12] for name, whole, is_intact in png_chunks(data) if name == b"cICP" and is_intact)
    return all(numbers == bytes([1, 13, 0, 1]) for numbers in said)


@lru_cache(maxsize=64)
def _is_srgb(profile: bytes) -> bool:
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip().lower()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - see `decoding`; what cannot be read is not known to be sRGB
        return False
    # "c2" and "uRGB" are small copies of sRGB that photo sites embed.
    return "srgb" in name or name in ("c2", "c2ci", "urgb")


def _colour_16(image: Image.Image) -> str:
    bands = image.split()[: 4 if image.mode == "CMYK" else 3]
    highest = max(int(np.asarray(band).max()) for band in bands)
    return DARK_COLOUR_16 if highest < 64 else COLOUR_16


def _key_bits(image: ImageFile.ImageFile) -> int:
    """Bits per value in the file, the unit in which its transparent grey value is given."""
    raw = image.tile[0][3] if image.tile else None
    return {"1": 1, "L;2": 2, "L;4": 4, "I;16B": 16, "RGB;16B": 16}.get(raw if isinstance(raw, str) else "", 8)


def _alpha(
    image: Image.Image, key_bits: int, covered: tuple[int, int, int, int] | None
) -> tuple[NDArray[np.uint8] | None, list[str]]:
    """Opacity of each pixel, uint8 (H, W), None if all are opaque; and `KEY_16` if a key was compared only in part."""
    key, notes = image.info.get("transparency"), []
    if image.mode in _WITH_ALPHA or (image.mode == "P" and image.has_transparency_data):
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    elif image.format == "PNG" and isinstance(key, int):
        # The file gives a key of 2 or 4 bits, but Pillow has scaled the values to 8 bits.
        scale = {1: 255, 2: 85, 4: 17}.get(key_bits, 1)
        key = min(key, 1) if image.mode == "1" else (key & (2**key_bits - 1)) * scale
        values = np.asarray(image)
        alpha = np.where(values == (bool(key) if image.mode == "1" else key), 0, 255).astype(np.uint8)
    elif image.mode == "RGB" and isinstance(key, tuple):
        colour = [part >> 8 if key_bits == 16 else part & 255 for part in key]
        alpha = np.where((np.asarray(image) == colour).all(axis=2), 0, 255).astype(np.uint8)
        notes = [KEY_16] if key_bits == 16 else []
    elif image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    elif covered not in (None, (0, 0, *image.size)):
        alpha = np.full((image.height, image.width), 255, np.uint8)
    else:
        return None, []
    if covered is not None:
        left, top, right, bottom = covered
        alpha = np.pad(
            alpha[top:bottom, left:right],
            ((top, image.height - bottom), (left, image.width - right)),
        )
    return (None, []) if alpha.min() == 255 else (alpha, notes)


def _over(image: Image.Image, alpha: NDArray[np.uint8], background: tuple[int, int, int]) -> Image.Image:
    # The conversion to RGBA undoes premultiplication.
    colours = image.convert("RGBA").convert("RGB") if image.mode in _WITH_ALPHA else image.convert("RGB")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(colours, mask=Image.fromarray(alpha))
    return canvas


def _without_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG file without metadata that do not affect its pixels; None for others, or if there are none."""
    if data.startswith(PNG_START):
        chunks = list(png_chunks(data))
        if not chunks or chunks[-1][0] != b"IEND":
            return None
        bare = PNG_START + b"".join(whole for name, whole, is_intact in chunks if _describes_pixels(name, is_intact))
    elif data.startswith(b"\xff\xd8"):
        # Keep JFIF (APP0), Exif (in APP1) and Adobe's colour transform (APP14).
        bare, place = b"\xff\xd8", 2
        while segment := re.compile(rb"\xff([\xc0-\xfe])(..)", re.DOTALL).match(data, place):
            marker, end = segment[1][0], place + 2 + int.from_bytes(segment[2], "big")
            part = data[place:end]
            if marker == 0xDA:
                break
            if marker in (0xE0, 0xEE) or not 0xE0 <= marker <= 0xFE or part[4:10] == b"Exif\0\0":
                bare += part
            place = end
        bare += data[place:]
    else:
        return None
    return bare if len(bare) < len(data) else None


def _describes_pixels(name: bytes, is_intact: bool) -> bool:
    if name in (b"eXIf", b"sBIT"):
        return is_intact
    # Any other chunk with a wrong checksum may have held pixels: it stays, so that the file is refused.
    return name not in _PNG_METADATA and not (is_intact and name[:1].islower() and name != b"tRNS")
