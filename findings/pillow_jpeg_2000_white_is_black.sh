#!/usr/bin/env bash
# Pillow 13.0.0: white in a 16-bit colour JPEG 2000 is decoded as black.
#
# Expected: 16 bits per channel become 8 by keeping the upper byte, as Pillow does for a 16-bit colour PNG: 65535 -> 255.
# What happens: the values are rounded, and values from 65408 on are rounded up to 256, which overflows to 0 in 8 bits.
# Highlights turn black while the rest of the picture is correct, without a warning. Below 8 bits, values are shifted
# instead of scaled: white in a 4-bit grey file is 240.
#
# Seen (another decoder reads the values back as they were written):
#   16-bit values:     [0, 256, 32768, 65407, 65408, 65535]
#   Pillow (RGB), R:   [0, 1, 128, 255, 0, 0]
#   white of 4 bits:   240
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pillow==13.0.0 imagecodecs==2026.3.6 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import io
import sys

import imagecodecs
import numpy as np
from PIL import Image

values = [0, 256, 32768, 65407, 65408, 65535]
shown = []
for value in values:
    pixels = np.full((8, 8, 3), value, np.uint16)
    file = imagecodecs.jpeg2k_encode(pixels, codecformat="jp2", reversible=True)
    assert np.array_equal(imagecodecs.jpeg2k_decode(file), pixels), "the file itself holds all 16 bits"
    image = Image.open(io.BytesIO(file))
    assert image.mode == "RGB"
    shown.append(image.getpixel((3, 3))[0])
white = imagecodecs.jpeg2k_encode(np.full((8, 8), 15, np.uint8), codecformat="jp2", reversible=True, bitspersample=4)
four = Image.open(io.BytesIO(white)).getpixel((3, 3))
print("16-bit values:    ", values)
print("Pillow (RGB), R:  ", shown)
print("white of 4 bits:  ", four)
sys.exit(0 if (shown, four) == ([0, 1, 128, 255, 0, 0], 240) else 1)
PYTHON
