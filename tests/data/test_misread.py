"""Files that Pillow decodes to other pixels than they hold are put right or left out."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from drl_dist.data.pixels import depth, pictures
from drl_dist.data.pixels.pictures import PictureError
from tests.helpers.pictures import RAMP, RAMP_8, saved, shown


def jpeg2000(values: NDArray[np.integer], bits: int, *, signed: bool = False) -> bytes:
    """A lossless JPEG 2000 file of any depth: Pillow's own of 8 or 16 bits, whose header is changed to that depth."""
    own = 8 if bits <= 8 else 16
    # The zero of the coder lies in the middle of an unsigned range.
    moved = values.astype(np.int64) - (0 if signed else 2 ** (bits - 1)) + 2 ** (own - 1)
    data = bytearray(saved(Image.fromarray(moved.astype(f"u{own // 8}")), "JPEG2000"))
    said = bits - 1 | (0x80 if signed else 0)
    data[data.index(b"ihdr") + 14] = said
    sizes = data.index(b"\xff\x4f\xff\x51") + 42
    data[sizes : sizes + 3 * values[0, 0].size : 3] = bytes([said]) * values[0, 0].size
    return bytes(data)


def test_jpeg_2000_of_any_depth_shows_its_values_or_is_left_out() -> None:
    twelve = np.tile(np.array([[0, 1000, 2000, 4095]], np.uint16), (4, 1))
    assert shown(jpeg2000(twelve, 12)) == ([[0, 62, 125, 255]] * 4, (depth.RANGED,))
    # Values of the option are those of the file, which Pillow shifts up.
    assert shown(jpeg2000(twelve, 12), value_range=(0, 2000))[0] == [[0, 128, 255, 255]] * 4
    assert shown(jpeg2000(np.tile(RAMP, (8, 1)), 16)) == (RAMP_8 * 8, (depth.SCALED,))
    few = np.tile(np.array([[0, 1, 8, 15]], np.uint8), (4, 1))
    assert shown(jpeg2000(few, 4)) == ([[0, 17, 136, 255]] * 4, ())
    assert shown(jpeg2000(np.stack([few] * 3, 2), 4), "RGB")[0] == [[[v] * 3 for v in (0, 17, 136, 255)]] * 4
    for bits, low in ((16, -1000), (8, -100)):
        signed = jpeg2000(np.tile(np.array([[low, 0, -low, 0]], np.int16), (4, 1)), bits, signed=True)
        with pytest.raises(PictureError, match=f"of {bits} bits with a sign without a range"):
            shown(signed)
        assert shown(signed, value_range=(low, -low))[0] == [[0, 128, 255, 128]] * 4
    # Pillow makes 0 of 65535 here, and shows values of 9 bits as if they had 8.
    colour = np.full((4, 4, 3), 255, np.uint8)
    for data in (colour, np.full((4, 4, 4), 255, np.uint8), np.full((4, 4, 2), 255, np.uint8)):
        encoded = bytearray(saved(Image.fromarray(data, "LA" if data.shape[2] == 2 else None), "JPEG2000"))
        encoded[encoded.index(b"\xff\x4f\xff\x51") + 42] = 15
        with pytest.raises(PictureError, match=r"JPEG 2000 of 16 bits in mode .*wrong values"):
            shown(bytes(encoded))
    with pytest.raises(PictureError, match=r"JPEG 2000 of 9 bits in mode L,"):
        shown(jpeg2000(twelve // 8, 9))


def tiff_of_planes(planes: NDArray[np.generic], photometric: int, *, alpha: int | None = None) -> bytes:
    """A little-endian TIFF with one strip for each plane, of `planes` (C, H, W)."""
    count, height, width = planes.shape
    size = planes[0].nbytes
    values = {256: [width], 257: [height], 258: [8 * planes.dtype.itemsize] * count, 259: [1], 262: [photometric]}
    values |= {273: [0] * count, 277: [count], 278: [height], 279: [size] * count, 284: [2]}
    values |= {} if alpha is None else {338: [alpha]}
    start = 8 + 2 + 12 * len(values) + 4
    values[273] = [start + 64 + size * number for number in range(count)]
    entries, more = b"", b""
    for tag, numbers in values.items():
        packed = struct.pack(f"<{len(numbers)}H", *numbers)
        if len(packed) > 4:
            more, packed = more + packed, struct.pack("<I", start + len(more))
        entries += struct.pack("<HHI", tag, 3, len(numbers)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4)
    return head + more.ljust(64, b"\0") + planes.tobytes()


def test_planes_that_pillow_mixes_up_are_left_out() -> None:
    planes = np.arange(4 * 4 * 4, dtype=np.uint8).reshape(4, 4, 4)
    assert shown(tiff_of_planes(planes[:3], 2), "RGB")[0] == planes[:3].transpose(1, 2, 0).tolist()
    for data in (
        tiff_of_planes(planes[:3].astype(np.uint16), 2),
        tiff_of_planes(planes.astype(np.uint16), 2, alpha=2),
        tiff_of_planes(planes.astype(np.uint16), 5),
        tiff_of_planes(planes[:2], 1, alpha=2),
        tiff_of_planes(planes[:3], 8),
    ):
        with pytest.raises(PictureError, match="separate planes"):
            shown(data)


def gif(screen: tuple[int, int], place: tuple[int, int], indices: list[int], key: int | None = None) -> bytes:
    """A GIF of one frame of one row, in four colours."""
    palette = bytes([10, 20, 30, 200, 100, 50, 0, 255, 0, 255, 0, 255])
    control = b"" if key is None else b"\x21\xf9\x04" + struct.pack("<BHBx", 1, 0, key)
    frame = b"\x2c" + struct.pack("<HHHHB", *place, len(indices), 1, 0)
    # Codes of three bits, with the code that clears the table before each, so that there is no compression.
    codes = sum(code << 3 * number for number, code in enumerate([c for i in indices for c in (4, i)] + [5]))
    packed = codes.to_bytes(-(-3 * (2 * len(indices) + 1) // 8), "little")
    blocks = b"\x02" + bytes([len(packed)]) + packed + b"\0"
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0x81, 0, 0) + palette + control + frame + blocks + b"\x3b"


def test_what_the_frame_of_a_gif_does_not_cover_is_transparent() -> None:
    white, brown = [255, 255, 255], [200, 100, 50]
    for key in (None, 0, 3):
        pixels, treated = shown(gif((4, 1), (1, 0), [1, 1], key), "RGB")
        assert pixels == [[white, brown, brown, white]] and treated == (pictures.TRANSPARENT,)
    assert shown(gif((2, 1), (0, 0), [1, 0]), "RGB") == ([[brown, [10, 20, 30]]], ())
    assert shown(gif((3, 1), (1, 0), [1, 3], 3), "RGB")[0] == [[white, brown, white]]


def test_premultiplied_grey_shows_its_own_grey() -> None:
    grey = np.array([[[100, 255], [50, 128], [0, 0]]], np.uint8)
    data = bytearray(saved(Image.fromarray(grey, "LA"), "TIFF"))
    place = data.index(struct.pack("<HHI", 338, 3, 1)) + 8
    data[place] = 1
    assert shown(bytes(data)) == ([[100, 177, 255]], (pictures.TRANSPARENT,))
    opaque = bytearray(saved(Image.fromarray(np.array([[[100, 255]]], np.uint8), "LA"), "TIFF"))
    opaque[opaque.index(struct.pack("<HHI", 338, 3, 1)) + 8] = 1
    assert shown(bytes(opaque)) == ([[100]], ())


def test_a_picture_that_is_transparent_everywhere_is_counted_separately() -> None:
    # As programs write it that leave the fourth byte unused.
    clear = np.zeros((2, 2, 4), np.uint8)
    for kind in ("PNG", "TGA"):
        assert shown(saved(Image.fromarray(clear), kind))[1] == (pictures.TRANSPARENT, pictures.CLEAR)


def test_depths_are_counted_where_they_are() -> None:
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    info = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 1, 1, 0, 0) + masks
    bmp = b"BM" + struct.pack("<IHHI", 70, 0, 0, 66) + info + struct.pack("<HH", 0xFFFF, 0xF800)
    assert shown(bmp, "RGB") == ([[[255, 255, 255], [255, 0, 0]]], ())
    for mode in ("RGB", "L"):
        deep = saved(Image.new("RGB", (2, 2), (200, 200, 200)).convert(mode), "SGI", bpc=2)
        assert shown(deep)[1] == (pictures.COLOUR_16,)
