#!/usr/bin/env bash
# fsspec 2026.9.0: `url_to_fs` treats an absolute local path that contains "::" as a chain of file systems.
#
# Expected: an absolute path without a protocol is a local path, whatever characters it contains; a chain looks like
# `zip://member::file://archive`. `Path`, `open` and every shell treat `photos::v2` as a folder of that name.
# What happens: the path is cut at "::". The result is the file system of the first part and a path without the second,
# which is the sibling folder `photos`, without any warning. Code that writes to that folder, or empties it, does so in the
# wrong folder. A path with a single ":", or "#", is used as it is.
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
