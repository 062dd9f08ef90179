"""A PNG whose rows end early is damaged, whatever Pillow makes of it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from drl_dist.data.pixels.pictures import PictureError, PixelRules, read_picture
from drl_dist.data.pixels.png_rows import refuse_missing_rows
from tests.helpers.pictures import saved


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, packed: list[bytes], *, bits: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    parts = [chunk(b"IDAT", part) for part in packed]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(parts) + chunk(b"IEND", b"")


def rows(count: int, size: int) -> bytes:
    return (b"\0" + bytes([200]) * size) * count


@pytest.mark.parametrize("count", [7, 4, 1])
def test_missing_rows_are_damage(count: int) -> None:
    data = png(8, 8, [zlib.compress(rows(count, 8))])
    # What Pillow does with it.
    assert np.asarray(Image.open(io.BytesIO(data)))[-1].max() == 0
    with pytest.raises(PictureError, match=f"pixels that end after {count * 9} of 72 bytes"):
        read_picture(data, PixelRules())


def test_all_rows_are_there_however_they_are_packed() -> None:
    packed = zlib.compress(rows(8, 8))
    for parts in ([packed], [packed[:5], packed[5:9], packed[9:]], [packed, b""]):
        assert np.asarray(read_picture(png(8, 8, parts), PixelRules()).image).min() == 200
    # More than is wanted is left aside, as by every decoder.
    refuse_missing_rows(png(8, 8, [zlib.compress(rows(9, 8))]))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (9, 5), (3, 17)])
def test_every_kind_of_pixel_is_counted_rightly(mode: str, size: tuple[int, int]) -> None:
    whole = saved(Image.new(mode, size), "PNG")
    refuse_missing_rows(whole)
    header, pixels = whole[: whole.index(b"IDAT") - 4], zlib.decompress(idat(whole))
    short = header + chunk(b"IDAT", zlib.compress(pixels[:-1])) + chunk(b"IEND", b"")
    with pytest.raises(PictureError, match=f"after {len(pixels) - 1} of {len(pixels)} bytes"):
        refuse_missing_rows(short)


def idat(data: bytes) -> bytes:
    start = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, start - 4)
    return data[start + 4 : start + 4 + length]


@pytest.mark.parametrize(("size", "wanted"), [((8, 8), 15 + 64), ((1, 1), 2), ((5, 3), 7 + 15)])
def test_interlaced_rows_are_counted_by_pass(size: tuple[int, int], wanted: int) -> None:
    whole = rows(1, wanted - 1)
    refuse_missing_rows(png(*size, [zlib.compress(whole)], interlace=1))
    with pytest.raises(PictureError, match=f"of {wanted} bytes"):
        refuse_missing_rows(png(*size, [zlib.compress(whole[:-1])], interlace=1))


def test_other_damage_is_left_to_the_decoder() -> None:
    refuse_missing_rows(b"no picture")
    refuse_missing_rows(png(8, 8, [b"no stream"]))
    refuse_missing_rows(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(PictureError):
        read_picture(png(8, 8, [zlib.compress(rows(8, 8))[:-12]]), PixelRules())


def test_a_bomb_is_not_unpacked() -> None:
    # Eight rows are wanted; the stream holds 64 MiB.
    refuse_missing_rows(png(8, 8, [zlib.compress(bytes(1 << 26))]))
