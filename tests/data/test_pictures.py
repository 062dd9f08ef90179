"""Pictures of all depths, transparencies and metadata become the 8-bit pixels that they show."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from datasets_prep import _pixels
from drl_dist.common.errors import UserError
from drl_dist.data.decode import read_images
from drl_dist.data.index import ShardIndex, open_index, write_index
from drl_dist.data.pixels import depth, pictures
from drl_dist.data.pixels.pictures import PictureError, PixelRules, read_picture
from drl_dist.data.shards import Sample, pack_shard
from drl_dist.data.substitutes import DamageError
from tests.helpers.pictures import RAMP, RAMP_8, saved, shown


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: NDArray[np.generic], colour: int, *chunks: tuple[bytes, bytes], bits: int | None = None) -> bytes:
    """A PNG written by hand; `values` (H, W[, C]) in the file's own depth, or packed bytes with `bits`."""
    wide = values.astype(values.dtype.newbyteorder(">"))
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    depth_bits = bits or 8 * values.dtype.itemsize
    width = values.shape[1] * 8 // bits if bits else values.shape[1]
    header = struct.pack(">IIBBBBB", width, len(values), depth_bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*one) for one in chunks), chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def tiff(
    values: NDArray[np.generic], *, white_is_zero: bool = False, kind: int = 1, **more: tuple[int, bytes]
) -> bytes:
    """A grey little-endian TIFF written by hand; more tags as t280=(type, value)."""
    data = values.tobytes()
    height, width = values.shape
    tags = {number: (3, struct.pack("<H", value)) for number, value in (
        (256, width), (257, height), (258, 8 * values.dtype.itemsize), (259, 1), (262, 0 if white_is_zero else 1),
        (277, 1), (278, height), (339, kind))}  # fmt: skip
    tags |= {279: (4, struct.pack("<I", len(data))), 273: (4, b"")}
    tags |= {int(name[1:]): value for name, value in more.items()}
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = (4, struct.pack("<I", start))
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + value.ljust(4, b"\0") for tag, (kind, value) in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def test_16_bits_of_grey_become_8() -> None:
    pgm = b"P5 8 1 65535\n" + RAMP.astype(">u2").tobytes()
    for data in (png(RAMP, 0), tiff(RAMP), saved(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"), pgm):
        assert shown(data) == (RAMP_8, (depth.SCALED,))
    assert shown(tiff(RAMP, white_is_zero=True)) == ([[255 - value for value in RAMP_8[0]]], (depth.SCALED,))
    # Pillow keeps the upper byte of 16-bit colour.
    assert shown(png(np.array([[[65535, 32768, 511]]], np.uint16), 2), "RGB") == (
        [[[255, 128, 1]]],
        (pictures.COLOUR_16,),
    )
    assert shown(png(np.array([[[65535, 0, 0]]], np.uint16) // 16, 2), "RGB")[1] == (pictures.DARK_COLOUR_16,)


def test_fewer_than_16_bits_are_said_or_taken_from_the_file_or_the_option() -> None:
    twelve = np.array([[0, 1000, 4095]], np.uint16)
    full = [[0, 62, 255]]
    assert shown(png(twelve, 0)) == ([[0, 4, 16]], (depth.DARK[12],))
    assert shown(png(twelve, 0), value_range=(0, 4095)) == (full, (depth.RANGED,))
    assert shown(png(twelve, 0, (b"sBIT", b"\x0c"))) == (full, (depth.RANGED,))
    # As the standard has it: scaled up to 16 bits, with the number of bits beside.
    up = twelve << 4 | twelve >> 8
    assert shown(png(up, 0, (b"sBIT", b"\x0c"))) == (full, (depth.SCALED,))
    assert shown(tiff(twelve, t281=(3, struct.pack("<H", 4095)))) == (full, (depth.RANGED,))
    # Statistics of one picture are no range.
    assert shown(tiff(twelve, t281=(3, struct.pack("<H", 5000))))[1] == (depth.DARK[12],)
    pgm = b"P5 3 1 4095\n" + twelve.astype(">u2").tobytes()
    assert shown(pgm) == (full, (depth.SCALED,))
    assert shown(pgm, value_range=(0, 2000)) == ([[0, 128, 255]], (depth.RANGED, depth.CLIPPED))


def test_values_without_a_range_need_one() -> None:
    cases = {
        "of 16 bits with a sign": tiff(np.array([[-1000, 0, 3000]], np.int16), kind=2),
        "of 32 bits with a sign": tiff(np.array([[-1000, 0, 3000]], np.int32), kind=2),
        "of 8 bits with a sign": tiff(np.array([[-100, 0, 100]], np.int8), kind=2),
        "of 32 bits without": tiff(np.array([[0, 1, 2**32 - 1]], np.uint32)),
        "floating-point": tiff(np.array([[0, 0.5, 1]], np.float32), kind=3),
    }
    for message, data in cases.items():
        with pytest.raises(PictureError, match=f"{message}.* range"):
            shown(data)
    assert shown(cases["of 16 bits with a sign"], value_range=(-1000, 3000)) == ([[0, 64, 255]], (depth.RANGED,))
    assert shown(cases["of 8 bits with a sign"], value_range=(-100, 100)) == ([[0, 128, 255]], (depth.RANGED,))
    assert shown(cases["of 32 bits without"], value_range=(0, 2**32 - 1))[0] == [[0, 0, 255]]
    assert shown(cases["floating-point"], value_range=(0, 1))[0] == [[0, 128, 255]]
    said = {"t340": (11, struct.pack("<f", 0)), "t341": (11, struct.pack("<f", 2))}
    assert shown(tiff(np.array([[0, 1, 4]], np.float32), kind=3, **said))[1] == (depth.RANGED, depth.CLIPPED)
    with pytest.raises(PictureError, match="no numbers"):
        shown(tiff(np.array([[0, np.nan]], np.float32), kind=3), value_range=(0, 1))


def test_transparent_pixels_show_the_background() -> None:
    red, white = [255, 0, 0], [255, 255, 255]
    rgba = np.array([[[255, 0, 0, 255], [0, 255, 0, 0]]], np.uint8)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    key = (b"tRNS", struct.pack(">3H", 0, 255, 0))
    key_16 = (b"tRNS", struct.pack(">3H", 0, 65535, 0))
    colours = rgba[:, :, :3]
    for data, expected in (
        (saved(Image.fromarray(rgba), "PNG"), ()),
        (saved(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), ()),
        (saved(Image.fromarray(rgba), "TIFF"), ()),
        (saved(palette, "PNG", transparency=1), ()),
        (saved(palette, "PNG", transparency=b"\xff\0"), ()),
        (saved(palette, "GIF", transparency=1), ()),
        (png(colours, 2, key), ()),
        (png(colours.astype(np.uint16) * 257, 2, key_16), (pictures.KEY_16,)),
        (png(rgba.astype(np.uint16) * 257, 6), ()),
    ):
        pixels, treated = shown(data, "RGB")
        assert pixels == [[red, white]] and pictures.TRANSPARENT in treated and set(expected) <= set(treated)
        assert shown(data, "RGB", background=(1, 2, 3))[0] == [[red, [1, 2, 3]]]
    grey = np.array([[[7, 255], [9, 0]]], np.uint8)
    assert shown(saved(Image.fromarray(grey, "LA"), "PNG")) == ([[7, 255]], (pictures.TRANSPARENT,))
    assert shown(png(np.array([[7, 9]], np.uint8), 0, (b"tRNS", b"\0\x09"))) == ([[7, 255]], (pictures.TRANSPARENT,))
    # The key counts in the file's own 2 bits, and in all 16.
    packed = np.array([[0b00011011]], np.uint8)
    assert shown(png(packed, 0, (b"tRNS", b"\0\x02"), bits=2))[0] == [[0, 85, 255, 255]]
    deep = png(np.array([[256, 257]], np.uint16), 0, (b"tRNS", struct.pack(">H", 257)))
    assert shown(deep)[0] == [[1, 255]]
    half = np.array([[[0, 0, 0, 128]]], np.uint8)
    assert shown(saved(Image.fromarray(half), "PNG"))[0] == [[127]]


def test_what_is_opaque_is_left_as_it_is() -> None:
    rgba = np.array([[[255, 0, 0, 255], [0, 255, 0, 255]]], np.uint8)
    assert shown(saved(Image.fromarray(rgba), "PNG"), "RGB") == ([[[255, 0, 0], [0, 255, 0]]], ())
    assert shown(png(rgba[:, :, :3], 2, (b"tRNS", struct.pack(">3H", 9, 9, 9))), "RGB")[1] == ()
    for data in (saved(Image.fromarray(rgba[:, :, 0]), "PNG"), saved(Image.fromarray(rgba[:, :, :3]), "BMP")):
        assert shown(data)[1] == ()


def jpeg_with(exif: bytes) -> bytes:
    plain = saved(Image.fromarray(np.array([[0] * 8 + [255] * 8] * 8, np.uint8)), "JPEG", quality=95)
    block = b"Exif\0\0" + exif
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + plain[2:]


def ifd(*entries: tuple[int, int, int, bytes]) -> bytes:
    packed = b"".join(
        struct.pack(">HHI", tag, kind, count) + value.ljust(4, b"\0") for tag, kind, count, value in entries
    )
    return b"MM\0*" + struct.pack(">IH", 8, len(entries)) + packed + bytes(4)


@pytest.mark.parametrize(
    ("exif", "size", "expected"),
    [
        (ifd((0x0112, 3, 1, b"\0\6")), (8, 16), ()),
        # A resolution of a text where Pillow would write a rational.
        (ifd((0x0112, 3, 1, b"\0\6"), (0x011A, 2, 2, b"x\0")), (8, 16), ()),
        (ifd((0x0112, 3, 1, b"\0\6"), (0x011A, 5, 1, struct.pack(">I", 60_000))), (8, 16), ()),
        (ifd((0x0112, 3, 1, b"\0\0")), (16, 8), (pictures.EXIF,)),
        (ifd((0x0112, 3, 1, b"\0\x09")), (16, 8), (pictures.EXIF,)),
        (ifd((0x0112, 2, 4, b"abc\0")), (16, 8), (pictures.EXIF,)),
        (ifd((0x0112, 3, 2, b"\0\6\0\6")), (8, 16), ()),
        (ifd((0x0112, 3, 1, b"\0\6"))[:14], (16, 8), (pictures.EXIF,)),
        (b"no TIFF block", (16, 8), (pictures.EXIF,)),
        (ifd(), (16, 8), (pictures.EXIF,)),
        (ifd((0x010F, 2, 4, b"abc\0")), (16, 8), ()),
    ],
)
def test_damaged_exif_keeps_the_pixels(exif: bytes, size: tuple[int, int], expected: tuple[str, ...]) -> None:
    picture = read_picture(jpeg_with(exif), PixelRules())
    assert (picture.image.size, picture.treated) == (size, expected)
    pixels = np.asarray(picture.image)
    dark, bright = (pixels[:, :8], pixels[:, 8:]) if size == (16, 8) else (pixels[:8], pixels[8:])
    assert dark.max() < 10 and bright.min() > 245


def test_damaged_metadata_of_png_keeps_the_pixels() -> None:
    grey = np.array([[5, 200]], np.uint8)
    bomb = b"a\0\0" + zlib.compress(bytes(2**21))
    for part in ((b"zTXt", bomb), (b"iCCP", bomb), (b"gAMA", b"x"), (b"cHRM", b"x")):
        assert shown(png(grey, 0, part)) == ([[5, 200]], (pictures.METADATA,))
    assert shown(png(grey, 0, (b"eXIf", b"no TIFF block"))) == ([[5, 200]], (pictures.EXIF,))
    # What may say something of pixels is not left aside.
    broken = bytearray(png(grey, 0, (b"tRNS", b"\0\5")))
    broken[broken.index(b"tRNS") + 1] ^= 1
    with pytest.raises(PictureError, match="cannot identify"):
        shown(bytes(broken))


def test_large_profiles_are_read_but_not_kept() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pictures._is_srgb.cache_clear()
    for number in range(3):
        profile = srgb + bytes([number]) * 2**17
        assert shown(saved(Image.new("L", (2, 2)), "JPEG", icc_profile=profile))[1] == ()
    assert pictures._is_srgb.cache_info().currsize == 0
    shown(saved(Image.new("L", (2, 2)), "JPEG", icc_profile=srgb))
    assert pictures._is_srgb.cache_info().currsize == 1


def test_colours_that_are_kept_as_stored_are_reported() -> None:
    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xyz = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert shown(saved(grey, "PNG", icc_profile=srgb))[1] == ()
    assert shown(saved(grey, "PNG", icc_profile=xyz))[1] == (pictures.PROFILE,)
    assert shown(png(np.array([[5]], np.uint8), 0, (b"gAMA", struct.pack(">I", 100_000))))[1] == (pictures.GAMMA,)
    assert shown(png(np.array([[5]], np.uint8), 0, (b"gAMA", struct.pack(">I", 45455))))[1] == ()
    adobe_rgb = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
    srgb_primaries = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    one = np.array([[[5, 6, 7]]], np.uint8)
    assert shown(png(one, 2, (b"cHRM", adobe_rgb)))[1] == (pictures.PROFILE,)
    assert shown(png(one, 2, (b"cHRM", srgb_primaries)))[1] == ()
    assert shown(png(one, 2, (b"sRGB", b"\0"), (b"cHRM", adobe_rgb)))[1] == ()
    # Wide colours with a high dynamic range.
    assert shown(png(one, 2, (b"cICP", bytes([9, 16, 0, 1]))))[1] == (pictures.PROFILE,)
    assert shown(png(one, 2, (b"cICP", bytes([1, 13, 0, 1]))))[1] == ()
    assert shown(saved(grey.convert("CMYK"), "JPEG"))[1] == (pictures.INKS,)
    assert shown(saved(grey.convert("LAB"), "TIFF"), "RGB")[1] == (pictures.LAB,)
    frames = saved(grey, "GIF", save_all=True, append_images=[Image.new("RGB", (2, 2))])
    assert shown(frames)[1] == (pictures.FRAMES,)


@pytest.mark.parametrize(
    "error", [struct.error, ZeroDivisionError, AttributeError, RecursionError, NotImplementedError, zlib.error]
)
def test_whatever_a_decoder_raises_means_this_picture(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("odd")

    monkeypatch.setattr(pictures.Image, "open", fail)
    with pytest.raises(PictureError, match="odd"):
        read_picture(b"", PixelRules())


def prepare(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, *options: str) -> ShardIndex:
    argv = ["folder", "--source", source, "--out", out, "--resolution", "8", "--workers", "1", *options]
    monkeypatch.setattr(sys, "argv", [str(part) for part in argv])
    assert import_module("datasets_prep.folder").main() == 0
    return open_index(str(out))


def test_a_folder_counts_what_was_treated_and_keeps_to_its_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    edge = np.zeros((16, 16, 4), np.uint8)
    edge[:, 8:] = (200, 200, 200, 255)
    (source / "a.png").write_bytes(saved(Image.fromarray(edge), "PNG"))
    (source / "b.png").write_bytes(png(np.full((8, 8), 65535, np.uint16), 0))
    (source / "c.tif").write_bytes(tiff(np.zeros((8, 8), np.float32), kind=3))
    index = prepare(monkeypatch, source, tmp_path / "out")
    printed = capsys.readouterr().err
    assert f"1 {pictures.TRANSPARENT}" in printed and f"1 {depth.SCALED}" in printed and "--background" in printed
    assert "floating-point values without a range" in printed
    images = read_images(index, 9).numpy()
    # Laid over white before it shrinks: nothing is darker than the picture.
    assert images[0].min() == 200 and images[0, :, :, 0].min() == 255 and images[1].min() == 255
    assert index.made_by["treated"] == {depth.SCALED: 1, pictures.TRANSPARENT: 1}
    assert prepare(monkeypatch, source, tmp_path / "out", "--background", "#fff").fingerprint == index.fingerprint
    assert f"1 {pictures.TRANSPARENT}" in capsys.readouterr().err
    for options in (("--background", "0,0,0"), ("--value-range", "-1", "1")):
        with pytest.raises(UserError, match=options[0][2:].replace("-", "_")):
            prepare(monkeypatch, source, tmp_path / "out", *options)
    assert prepare(monkeypatch, source, tmp_path / "ranged", "--value-range", "-1", "1").num_samples == 3
    for options in (("--background", "nocolour"), ("--background", "1,2,300"), ("--value-range", "5", "5")):
        with pytest.raises(UserError, match=options[0]):
            prepare(monkeypatch, source, tmp_path / "none", *options)
    assert not (tmp_path / "none").exists()


def test_ordinary_images_keep_their_bytes_and_old_records_are_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(4):
        values = (np.arange(20 * 16 * 3) * (number + 7) % 251).astype(np.uint8).reshape(20, 16, 3)
        (source / f"{number}.ppm").write_bytes(b"P6 16 20 255\n" + values.tobytes())
    index = prepare(monkeypatch, source, tmp_path / "out", "--shard-size", "2")
    assert index.fingerprint == FINGERPRINT and "treated" not in index.made_by
    # As the version before left it when it was killed after its first shard.
    progress = tmp_path / "out" / "_progress"
    progress.mkdir()
    (tmp_path / "out" / "index.parquet").unlink()
    row = index.shards[0]
    old = {
        "row": {"name": row.name, "size": row.size, "sha256": row.sha256, "offsets": row.offsets.tolist()},
        "unreadable": [],
    }
    (progress / "00000.json").write_text(json.dumps(old))
    made = {key: value for key, value in index.made_by.items() if key != "unreadable"}
    (progress / "parameters.json").write_text(json.dumps({"name": "images", "split": "train", "channels": 3} | made))
    capsys.readouterr()
    assert prepare(monkeypatch, source, tmp_path / "out", "--shard-size", "2").fingerprint == FINGERPRINT
    printed = capsys.readouterr().err
    assert "1 shard finished" in printed and "1 of them were made by an earlier version" in printed


FINGERPRINT = "634ef37635725b817d9aa652b03a0e39db63f88ad498929ecd2f631f880bf2b8"
"""Of the version before depth and transparency were looked at."""


def test_lack_of_memory_names_the_image_and_no_fault_of_writing_is_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(np.zeros((8, 8), np.uint8), 0))

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(_pixels, "read_picture", fail)
    with pytest.raises(UserError, match=r"image a\.png: got too little memory"):
        prepare(monkeypatch, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(np.zeros((8, 8, 3), np.uint16), 2), "16 bits a channel"),
        (png(np.zeros((8, 8, 3), np.uint8), 2, (b"tRNS", bytes(6))), "transparent pixels"),
        (png(np.zeros((8, 8), np.uint16), 0), "I;16"),
    ],
)
def test_a_shard_made_elsewhere_is_not_changed_in_silence(tmp_path: Path, data: bytes, message: str) -> None:
    packed, row = pack_shard("a-train-00000.tar", [Sample(0, data)])
    (tmp_path / row.name).write_bytes(packed)
    index = ShardIndex(url=str(tmp_path), name="a", split="train", resolution=8, channels=3, shards=(row,))
    write_index(index)
    with pytest.raises(DamageError, match=message):
        read_images(open_index(str(tmp_path)), 1)
