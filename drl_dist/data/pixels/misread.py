"""Detection and correction of files that Pillow decodes to wrong pixels without an error.

Each case was found by comparing Pillow with other decoders on the same file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFile

from drl_dist.data.pixels.depth import Component, PictureError

_PLANES = 284
_SEPARATE = 2


def refuse_misread(image: ImageFile.ImageFile, components: Sequence[Component]) -> None:
    """Return if Pillow decodes an opened image to its true pixels.

    Args:
        image: the image, not decoded yet.
        components: channels of a JPEG 2000 file.

    Raises:
        PictureError: Pillow would decode wrong pixels.
    """
    most = max((component.bits for component in components), default=8)
    if most > 8 and image.mode != "I;16":
        # Pillow rounds to 8 bits without clipping: white becomes black.
        raise PictureError(f"JPEG 2000 of {most} bits in mode {image.mode}, which Pillow decodes to wrong values")
    if image.mode in ("P", "PA") and any(component.bits != 8 for component in components):
        raise PictureError(f"JPEG 2000 with a palette and {most} bits, which Pillow decodes to wrong colours")
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PLANES) == _SEPARATE:
        is_raw = any(tile[0] == "raw" for tile in image.tile)
        # Pillow reads planes of 16 bits as if they had 8, separate planes of grey and alpha as if interleaved, and a*
        # and b* without their sign.
        if image.mode in ("LA", "La", "PA", "LAB") or (is_raw and _has_16_bits(image)):
            raise PictureError(
                f"TIFF of mode {image.mode} with separate planes, which Pillow decodes to wrong values; stored with "
                "contiguous samples it could be taken"
            )


def put_right(image: Image.Image, components: Sequence[Component]) -> Image.Image:
    """A decoded image with corrected values.

    JPEG 2000 of less than 8 bits, which Pillow only shifts up, is rescaled so that its largest value is 255.
    Premultiplied grey, which Pillow converts to no other mode, becomes plain grey.
    """
    if image.mode == "La":
        return image.convert("LA")
    bands = image.getbands()
    if len(bands) != len(components) or all(component.bits >= 8 for component in components):
        return image
    values = np.arange(256)
    table = [
        np.rint((values >> 8 - bits) * 255 / (2**bits - 1)).astype(int)
        for bits in (min(8, component.bits) for component in components)
    ]
    return image.point(np.concatenate(table).tolist())


def _has_16_bits(image: ImageFile.ImageFile) -> bool:
    bits = getattr(image, "tag_v2", {}).get(258, ())
    return 16 in (bits if isinstance(bits, tuple) else (bits,))
