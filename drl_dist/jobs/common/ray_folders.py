"""Folders of Ray: sockets and logs of a Ray on this machine, and the working folder that a submitted job came with."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from drl_dist.common.errors import UserError

SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux."""
# Ray's part of it: /ray, the folder of the session with date, time and process id, the name of the longest socket.
_BELOW = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
_SHORT = Path("/tmp")
_VARIABLES = ("RAY_TMPDIR", "TMPDIR")


def session_folder() -> str | None:
    """A folder for ``ray.init``, None for the one that Ray would take by itself.

    Batch systems give a job a TMPDIR whose path is too long for a socket, and on a machine of several people /tmp/ray
    may belong to somebody else. Then Ray gets a folder of its own in /tmp, which goes when this process ends.

    Raises:
        UserError: no folder can be made where RAY_TMPDIR, TMPDIR or /tmp says.
    """
    variable = next((name for name in _VARIABLES if os.environ.get(name)), None)
    base = Path(os.environ[variable]) if variable else _SHORT
    # Ray makes a folder that is missing.
    above = next(folder for folder in (base, *base.parents) if folder.exists())
    if not (base.is_absolute() and above.is_dir() and _is_writable(above)):
        raise UserError(
            f"folder of temporary files {base}" + (f" ({variable})" if variable else ""),
            got="one that cannot be made or written",
            expected="an absolute path of a folder in which Ray can keep its sockets and logs",
            remedy=f"make it, or {'correct or unset ' + variable if variable else 'set TMPDIR to another one'}",
        )
    session = base / "ray"
    is_usable = not session.exists() or _is_writable(session)
    if is_usable and len(os.fsencode(base)) + _BELOW <= SOCKET_BYTES:
        # Ray takes a variable that is empty for the folder that it works in.
        return str(session) if any(os.environ.get(name) == "" for name in _VARIABLES) else None
    try:
        short = Path(tempfile.mkdtemp(prefix="ray-", dir=_SHORT))
    except OSError as error:
        raise UserError(
            "Ray's folder of sockets",
            got=f"{base}, whose path is too long or whose folder ray is somebody else's, and {error}",
            expected=f"a path of at most {SOCKET_BYTES - _BELOW} bytes that may be written",
            remedy="set RAY_TMPDIR to a short one",
        ) from error
    # Ray's own processes end with this one, just after it has left them.
    atexit.register(shutil.rmtree, short, ignore_errors=True)
    return str(short)


def _is_writable(folder: Path) -> bool:
    # /proc takes nothing, whatever its rights say.
    return os.access(folder, os.W_OK | os.X_OK) and not folder.is_relative_to("/proc")


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
    if folder is not None and (warning := large_entries(folder)):
        print(warning, file=sys.stderr, flush=True)


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
