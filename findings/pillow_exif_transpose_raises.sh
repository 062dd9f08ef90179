#!/usr/bin/env bash
# Pillow 13.0.0: `ImageOps.exif_transpose` raises because of one malformed tag that has nothing to do with orientation.
#
# Expected: it reads the orientation, turns the pixels, and keeps or drops tags that it cannot write.
# What happens: it writes all EXIF tags anew, and raises when one of them cannot be packed: here XResolution, a rational,
# stored as an ASCII string. The file opens, its pixels decode, and `getexif()[0x0112]` gives the orientation.
#
# Seen:
SEEN
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pillow==13.0.0
"$folder/env/bin/python" - <<'PYTHON'
import io
import struct
import sys

from PIL import Image, ImageOps


def tiff(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """A little-endian EXIF block: tag, type, count, value of four bytes."""
    body = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack("<HHI", tag, kind, count) + value
    return b"Exif\0\0II*\0\x08\0\0\0" + body + b"\0\0\0\0"


SHORT, ASCII = 3, 2
exif = tiff([(0x0112, SHORT, 1, struct.pack("<HH", 6, 0)), (0x011A, ASCII, 3, b"72\0\0")])
file = io.BytesIO()
Image.new("RGB", (40, 20), "red").save(file, format="JPEG", exif=exif)
image = Image.open(io.BytesIO(file.getvalue()))
image.load()
print("size:", image.size, "orientation:", image.getexif()[0x0112])
try:
    turned = ImageOps.exif_transpose(image)
except Exception as error:
    print("exif_transpose raised", type(error).__name__ + ":", error)
    sys.exit(0)
print("exif_transpose gave an image of", turned.size)
sys.exit(1)
PYTHON
