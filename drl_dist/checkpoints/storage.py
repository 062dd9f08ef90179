"""Checkpoint folders on any storage URL: listing, fetching and uploading, such that an unfinished one is never used."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drl_dist.checkpoints.format import CHECKSUMS, CONFIG, PARTS, STATE, part_file
from drl_dist.common.errors import UserError
from drl_dist.common.places import joined
from drl_dist.data.filesystem import (
    REACH_DEADLINE,
    REQUEST_BYTES,
    Folder,
    check_reachable,
    name_below,
    open_filesystem,
    within,
)

# Exactly as `checkpoint_name` writes it: folders of nearly the same name are somebody else's.
_NAME = re.compile(r"checkpoint_([0-9]{9}|[1-9][0-9]{9,})")
FILES = (CONFIG, STATE, *map(part_file, PARTS), CHECKSUMS)
"""All that a checkpoint's folder is given."""
_LOOKED_AT = 20
"""Folders in which runs are looked for, for the message where a storage is given in the place of a run."""
SAVED_WEIGHTS = "model.safetensors"
"""File of a saved model, which is no checkpoint; see `drl_dist.library.folder`."""
_FETCHES = 2
"""Reads of a file whose checksum differs."""


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` training steps; names sort as steps do."""
    return f"checkpoint_{step:09d}"


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint folder below a run folder."""

    url: str
    step: int


def newest_checkpoint(run_url: str) -> StoredCheckpoint | None:
    """The complete checkpoint of most steps directly below a run folder, None if there is none.

    Complete means that ``checksums.json`` is there and every file it lists has the recorded size; the checksums
    themselves are compared when the checkpoint is read.

    Raises:
        UserError: the storage does not answer.
    """
    return next(complete_checkpoints(run_url), None)


def complete_checkpoints(run_url: str) -> Iterator[StoredCheckpoint]:
    """Complete checkpoints below a run folder, newest first; errors as `newest_checkpoint`."""
    return (stored for stored in stored_checkpoints(run_url) if is_complete(stored.url))


def stored_checkpoints(run_url: str) -> list[StoredCheckpoint]:
    """Checkpoint folders below a run folder, newest first, unfinished and damaged ones too; errors as
    `newest_checkpoint`."""
    steps = [int(match[1]) for name in _subfolders(run_url) if (match := _NAME.fullmatch(name))]
    return [StoredCheckpoint(joined(run_url, checkpoint_name(step)), step) for step in sorted(steps, reverse=True)]


def is_complete(url: str) -> bool:
    """Whether a checkpoint folder holds all its files at their recorded sizes."""
    folder = Folder(url)
    sizes = folder.sizes()
    if CHECKSUMS not in sizes:
        return False
    try:
        entries = json.loads(folder.read(CHECKSUMS))
        return all(sizes.get(name) == entry["bytes"] for name, entry in entries.items())
    except (ValueError, TypeError, KeyError, AttributeError, FileNotFoundError):
        return False


def fetch_checkpoint(url: str, parts: Iterable[str] = ("ema",), *, into: Path | None = None) -> Path:
    """A local folder that holds a checkpoint, or the newest complete one below a run folder.

    Args:
        url: a checkpoint folder or a run folder on any filesystem.
        parts: which tensors to bring; see `drl_dist.checkpoints.format.PARTS`.
        into: where to put the files; by default a new temporary folder that the caller removes. A checkpoint on this
            machine's own filesystem is not copied, its folder is returned.

    Raises:
        UserError: the storage does not answer, or there is no complete checkpoint.
    """
    check_reachable(url)
    if CHECKSUMS not in Folder(url).sizes():
        newest = newest_checkpoint(url)
        if newest is None:
            if SAVED_WEIGHTS in Folder(url).sizes():
                raise UserError(
                    f"checkpoint {url}",
                    got="a saved model, which holds nothing to train on",
                    expected="a checkpoint folder or a run folder",
                    remedy="give those of the run that trained it",
                )
            runs = _runs_below(url)
            raise UserError(
                f"checkpoint {url}",
                got=f"no checkpoint but runs, such as {joined(url, runs[0])}"
                if runs
                else "no complete checkpoint there or directly below",
                expected="a checkpoint folder or a run folder",
                remedy=f"choose one of those that python -m drl_dist list {url} shows" if runs else "correct the URL",
            )
        url = newest.url
    folder = Folder(url)
    if folder.local is not None:
        return folder.local
    target = into or Path(tempfile.mkdtemp(prefix="drl-checkpoint-"))
    target.mkdir(parents=True, exist_ok=True)
    sizes = folder.sizes()
    for name in (CHECKSUMS, CONFIG, STATE, *(part_file(part) for part in parts)):
        # A missing or damaged file is not an error here: reading the folder says which one it is.
        if name in sizes:
            _fetch_file(folder, name, sizes[name], target)
    return target


def _fetch_file(folder: Folder, name: str, size: int, target: Path) -> None:
    """Copy one file, a second time if its checksum differs: a bit that flipped on the way is not there again."""
    for _ in range(_FETCHES):
        digest = hashlib.sha256()
        with (target / name).open("wb") as file:
            for start in range(0, size, REQUEST_BYTES):
                block = folder.read(name, start, min(start + REQUEST_BYTES, size))
                digest.update(block)
                file.write(block)
        if name == CHECKSUMS or _recorded_sha256(target, name) in (None, digest.hexdigest()):
            return


def _recorded_sha256(target: Path, name: str) -> str | None:
    try:
        return str(json.loads((target / CHECKSUMS).read_bytes())[name]["sha256"])
    except (ValueError, TypeError, KeyError, FileNotFoundError):
        return None


def is_own_name(name: str) -> bool:
    """Whether a folder's name is one that `checkpoint_name` gives."""
    return _NAME.fullmatch(name) is not None


def remove_checkpoint(url: str) -> None:
    """Remove the files of a checkpoint, and its folder if nothing else lies there.

    The checksums go first: what is half removed counts as unfinished.

    Raises:
        UserError: the storage does not answer.
    """
    folder = Folder(url)
    folder.remove_written([CHECKSUMS])
    folder.remove_written(FILES)
    folder.remove_if_empty()


def upload_checkpoint(local: Path, url: str) -> None:
    """Copy a checkpoint folder to a URL; ``checksums.json`` goes last, so a torn copy never counts as complete.

    Raises:
        UserError: the storage does not take it.
    """
    folder = Folder(url)
    folder.remove(CHECKSUMS)
    names = sorted(path.name for path in local.iterdir() if path.name != CHECKSUMS)
    for name in (*names, CHECKSUMS):
        folder.write(name, (local / name).read_bytes())


def _runs_below(url: str) -> list[str]:
    """Names of folders in a storage that have checkpoints, among the first few."""
    names = sorted(name for name in _subfolders(url) if not is_own_name(name))
    return [name for name in names[:_LOOKED_AT] if stored_checkpoints(joined(url, name))]


def _subfolders(url: str) -> list[str]:
    filesystem, path = open_filesystem(url)
    try:
        entries = within(REACH_DEADLINE, lambda: filesystem.ls(path, detail=True, refresh=True))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except Exception as error:
        raise UserError(
            f"storage {url}",
            got=f"{type(error).__name__}: {error}",
            expected="a list of its folders",
            remedy="check the address, the network and the credentials",
        ) from error
    names = [name_below(path, entry) for entry in entries if entry["type"] == "directory"]
    return [name for name in names if name is not None]
