"""Files of which Pillow makes other pixels than they hold: told from others, and left out or put right.

Each of these was found by comparing Pillow with other decoders on the same file; Pillow raises nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFile

from drl_dist.data.depth import Component, PictureError

_PLANES = 284
_SEPARATE = 2


def refuse_misread(image: ImageFile.ImageFile, components: Sequence[Component]) -> None:
    """Return if Pillow decodes an opened image to the pixels that it holds.

    Args:
        image: not decoded yet.
        components: of a JPEG 2000 file.

    Raises:
        PictureError: it does not.
    """
    most = max((component.bits for component in components), default=8)
    if most > 8 and image.mode != "I;16":
        # It rounds to 8 bits without a limit: white becomes black.
        raise PictureError(f"JPEG 2000 of {most} bits in mode {image.mode}, which Pillow decodes to wrong values")
    if image.mode in ("P", "PA") and any(component.bits != 8 for component in components):
        raise PictureError(f"JPEG 2000 with a palette and {most} bits, which Pillow decodes to wrong colours")
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PLANES) == _SEPARATE:
        is_raw = any(tile[0] == "raw" for tile in image.tile)
        # It reads planes of 16 bits as if they had 8, planes of grey and alpha as if they alternated, and a* and b*
        # without their sign.
        if image.mode in ("LA", "La", "PA", "LAB") or (is_raw and _has_16_bits(image)):
            raise PictureError(
                f"TIFF of mode {image.mode} with separate planes, which Pillow decodes to wrong values; stored with "
                "contiguous samples it could be taken"
            )


def put_right(image: Image.Image, components: Sequence[Component]) -> Image.Image:
    """A decoded image with the values that it stands for.

    JPEG 2000 of less than 8 bits, which Pillow only shifts up, gets 255 for its largest value; premultiplied grey,
    which Pillow converts to nothing else, its own grey.
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
