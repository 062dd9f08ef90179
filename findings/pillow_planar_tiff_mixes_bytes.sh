#!/usr/bin/env bash
# Pillow 13.0.0: an uncompressed 16-bit RGB TIFF with separate planes is decoded to a different picture.
#
# Expected: PlanarConfiguration only says how the samples are laid out in the file. The same pixels, separate or side by
# side, give the same picture; or an unsupported layout is an error.
# What happens: each plane's 16-bit values are read as 8-bit values, so their low and high bytes become neighbouring
# pixels. Size and mode are correct, and there is no warning.
#
# Seen (every pixel is 65535, 32768, 0):
#   side by side: [[255, 128, 0], [255, 128, 0]]
#   separate:     [[255, 0, 0], [255, 128, 0]]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import io
import sys

import numpy as np
import tifffile
from PIL import Image

pixels = np.empty((4, 4, 3), np.uint16)
pixels[...] = (65535, 32768, 0)
shown = {}
for planes, data in (("contig", pixels), ("separate", np.moveaxis(pixels, -1, 0))):
    file = io.BytesIO()
    tifffile.imwrite(file, data, photometric="rgb", planarconfig=planes)
    assert np.array_equal(tifffile.imread(io.BytesIO(file.getvalue())), data), "the file itself holds all 16 bits"
    image = Image.open(io.BytesIO(file.getvalue()))
    assert (image.mode, image.size) == ("RGB", (4, 4))
    shown[planes] = np.asarray(image)[0, :2].tolist()
print("side by side:", shown["contig"])
print("separate:    ", shown["separate"])
right = [[255, 128, 0], [255, 128, 0]]
sys.exit(0 if shown == {"contig": right, "separate": [[255, 0, 0], [255, 128, 0]]} else 1)
PYTHON
