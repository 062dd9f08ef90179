#!/usr/bin/env bash
# safetensors 0.8.0: `safetensors.torch.load`, which reads bytes, gives the tensors in another order every time.
#
# Expected: a dictionary in the order of the file, as `safetensors.torch.load_file` gives for the same bytes on disk.
# What happens: the order differs from call to call and from process to process. Whoever loops over the dictionary on
# several ranks, with a collective operation for each tensor, exchanges tensors of different names where their shapes are
# the same, and nothing is raised.
#
# Seen (the second line is another one at each run):
#   load_file: a b c d e f g h, as in the file
#   load: 20 calls gave 20 different orders
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet safetensors==0.8.0 torch==2.13.0 numpy
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import sys
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save_file

save_file({name: torch.zeros(2) for name in "abcdefgh"}, "tensors.safetensors")
from_file = list(load_file("tensors.safetensors"))
print("load_file:", *from_file, "as in the file" if from_file == sorted(from_file) else "")
data = Path("tensors.safetensors").read_bytes()
orders = {tuple(load(data)) for _ in range(20)}
print(f"load: 20 calls gave {len(orders)} different orders")
sys.exit(0 if from_file == sorted(from_file) and len(orders) > 1 else 1)
PYTHON
