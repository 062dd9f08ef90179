"""The working folder that a submitted job came with: told where it is large, since every submission sends it again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

LARGE_BYTES = 20 * 2**20
_MOST_NAMED = 3


def warn_of_large_folder() -> None:
    """A line on stderr if this is a submitted job whose working folder is large."""
    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    sent = (job.get("runtime_env") or {}).get("working_dir") or ""
    # Ray keeps what was sent under this scheme; other places were not sent.
    if not sent.startswith("gcs://"):
        return
    # It is unpacked in a folder of the package's name, in which the job begins; the command may go elsewhere.
    name, here = Path(sent.removeprefix("gcs://")).stem, Path.cwd()
    folder = next((folder for folder in (here, *here.parents) if folder.name == name), None)
    if folder is not None and (told := large_entries(folder)):
        print(told, file=sys.stderr, flush=True)


def large_entries(folder: Path) -> str | None:
    """One sentence with the size and the largest entries of a folder, None if it holds at most `LARGE_BYTES`."""
    sizes = {entry.name: _size(entry) for entry in folder.iterdir()}
    total = sum(sizes.values())
    if total <= LARGE_BYTES:
        return None
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_MOST_NAMED]
    named = ", ".join(f"{name} {sizes[name] / 2**20:.1f} MiB" for name in largest)
    return (
        f"--working-dir sent {total / 2**20:.0f} MiB ({named}), which every submission repeats and Ray refuses beyond "
        "512 MiB; keep data and results outside the folder, or list them in its .gitignore or .rayignore"
    )


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size(entry) for entry in path.iterdir())
    return path.lstat().st_size
