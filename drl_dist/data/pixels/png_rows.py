"""PNG files whose pixels end before their last row, which Pillow fills up with black without an error."""

from __future__ import annotations

import struct
import zlib

from drl_dist.data.pixels.depth import PNG_START, PictureError, png_chunks

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a pixel, by the colour type."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of Adam7: first column and row, and steps between columns and rows."""
_PIECE = 1 << 20


def refuse_missing_rows(data: bytes) -> None:
    """Return if a PNG file holds all rows of its pixels, or is no PNG; nothing is said of other damage.

    Raises:
        PictureError: rows lack.
    """
    if not data.startswith(PNG_START):
        return
    chunks = list(png_chunks(data))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 25:
        return
    width, height, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunks[0][1][8:21])
    if colour not in _SAMPLES or interlace not in (0, 1):
        return
    wanted = sum(
        rows * (1 + -(-columns * bits * _SAMPLES[colour] // 8))
        for columns, rows in _sizes(width, height, bool(interlace))
        if columns
    )
    found = _unpacked_size([whole[8:-4] for name, whole, _ in chunks if name == b"IDAT"], wanted)
    if found is not None and found < wanted:
        raise PictureError(f"pixels that end after {found} of {wanted} bytes")


def _sizes(width: int, height: int, is_interlaced: bool) -> list[tuple[int, int]]:
    """Columns and rows of each pass."""
    if not is_interlaced:
        return [(width, height)]
    return [
        (-(-max(0, width - left) // across), -(-max(0, height - top) // down)) for left, top, across, down in _PASSES
    ]


def _unpacked_size(parts: list[bytes], most: int) -> int | None:
    """Bytes that a stream unpacks to, counted up to `most` and never held together; None if it is damaged."""
    stream, found = zlib.decompressobj(), 0
    try:
        for part in parts:
            rest = part
            while rest and found < most:
                found += len(stream.decompress(rest, _PIECE))
                rest = stream.unconsumed_tail
    except zlib.error:
        # Pillow says what is wrong.
        return None
    return found
