#!/usr/bin/env bash
# fsspec 2026.9.0: `url_to_fs` takes an absolute local path with "::" in it for a chain of file systems.
#
# Expected: an absolute path without a protocol is a local path, whatever its names; a chain is something like
# `zip://member::file://archive`. `Path`, `open` and every shell take the folder `photos::v2` for a folder of that name.
# What happens: the path is cut at "::", and the file system of the first part is returned with a path without the second:
# the folder beside it, `photos`. Nothing says so. Whoever writes there, or empties what they were given, does it in another
# folder. A path with ":" alone, or "#", is taken as it is.
#
# Seen:
#   on disk: ['mine.txt'] in photos::v2
#   url_to_fs gives: LocalFileSystem photos
#   files there: []
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
