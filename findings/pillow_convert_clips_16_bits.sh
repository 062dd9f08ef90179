#!/usr/bin/env bash
# Pillow 13.0.0: `convert("L")` of a 16-bit grey image clips to 255 instead of scaling 65535 to 255.
#
# Expected: 16 bits are scaled to 8, the inverse of scaling 8 bits to 16: 0, 257, 25700, 65535 -> 0, 1, 100, 255.
# What happens: every value above 255 becomes 255, without a warning. A 16-bit PNG (mode "I;16") with most values above
# 255 becomes an almost white picture. `convert("RGB")` does the same.
#
# Seen:
#   mode read from the PNG: I;16
#   16-bit values:     [0, 257, 25700, 65535]
#   convert("L"):      [0, 255, 255, 255]
#   convert("RGB"), R: [0, 255, 255, 255]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import io
import sys

import numpy as np
from PIL import Image

values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
file = io.BytesIO()
Image.fromarray(values).save(file, format="PNG")
image = Image.open(io.BytesIO(file.getvalue()))
assert np.array_equal(np.asarray(image), values), "the PNG itself holds all 16 bits"
grey = np.asarray(image.convert("L")).ravel().tolist()
red = np.asarray(image.convert("RGB"))[..., 0].ravel().tolist()
print("mode read from the PNG:", image.mode)
print("16-bit values:    ", values.ravel().tolist())
print('convert("L"):     ', grey)
print('convert("RGB"), R:', red)
sys.exit(0 if grey == red == [0, 255, 255, 255] else 1)
PYTHON
