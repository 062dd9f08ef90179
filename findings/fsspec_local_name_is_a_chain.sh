#!/usr/bin/env bash
# fsspec 2026.9.0: `url_to_fs` takes an absolute local path with "::" in it for a chain of file systems.
SEEN
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet fsspec==2026.9.0
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import os
import sys
from pathlib import Path

from fsspec.core import url_to_fs

place = Path.cwd() / "photos::v2"
place.mkdir()
(place / "mine.txt").write_text("mine")
print("on disk:", sorted(os.listdir(place)), "in", place.name)
fs, path = url_to_fs(str(place))
print("url_to_fs gives:", type(fs).__name__, os.path.relpath(path))
print("files there:", [os.path.relpath(found) for found in fs.find(path)])
sys.exit(0 if Path(path).name == "photos" else 1)
PYTHON
