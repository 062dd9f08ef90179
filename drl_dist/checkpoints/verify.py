"""The newest checkpoint whose checksums agree, found before anybody loads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from drl_dist.checkpoints.format import CHECKSUMS, CONFIG, PARTS, STATE, part_file
from drl_dist.checkpoints.storage import StoredCheckpoint, stored_checkpoints
from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import REQUEST_BYTES, Folder

_FILES = (CONFIG, STATE, *map(part_file, PARTS))


def _say(line: str) -> None:
    print(line, flush=True)


def newest_sound_checkpoint(run_url: str, tell: Callable[[str], None] = _say) -> StoredCheckpoint | None:
    """The checkpoint of most steps directly below a run folder that verifies, None if none was ever finished.

    Every file is read and compared with its SHA-256.

    Args:
        run_url: folder of the run.
        tell: gets one line for each newer checkpoint that is passed over, which names it and its file.

    Raises:
        UserError: the storage does not answer, or finished checkpoints are there and none of them verifies.
    """
    flaws: list[str] = []
    for stored in stored_checkpoints(run_url):
        sizes = Folder(stored.url).sizes()
        if CHECKSUMS not in sizes:
            tell(f"passing over checkpoint {stored.url}: it is unfinished (no {CHECKSUMS})")
            continue
        flaw = _flaw(Folder(stored.url), sizes)
        if flaw is None:
            return stored
        tell(f"passing over checkpoint {stored.url}: {flaw}")
        flaws.append(f"{stored.url}: {flaw}")
    if flaws:
        # To start from nothing would look as if all were well, and in time replace what may still be mended.
        raise UserError(
            f"run {run_url}",
            got=f"damaged checkpoints only ({flaws[0]})",
            expected="one whose checksums agree",
            remedy="restore one from a copy, or delete these folders to start from the beginning",
        )
    return None


def _flaw(folder: Folder, sizes: dict[str, int]) -> str | None:
    """What is wrong with a finished checkpoint, as a phrase that names the file; None if it verifies."""
    try:
        entries: dict[str, Any] = json.loads(folder.read(CHECKSUMS))
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{CHECKSUMS} is damaged"
    for name in dict.fromkeys((*_FILES, *expected)):
        if name not in expected:
            return f"{CHECKSUMS} does not list {name}"
        size, sha256 = expected[name]
        if sizes.get(name) != size:
            return f"{name} has {sizes[name]} bytes, expected {size}" if name in sizes else f"{name} is missing"
        digest = _sha256(folder, name, size)
        if digest != sha256 and folder.local is None:
            # A bit that flipped on the way is not there the second time.
            digest = _sha256(folder, name, size)
        if digest != sha256:
            return f"{name} has SHA-256 {digest[:16]}..., expected {sha256[:16]}..."
    return None


def _sha256(folder: Folder, name: str, size: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, size, REQUEST_BYTES):
        digest.update(folder.read(name, start, min(start + REQUEST_BYTES, size)))
    return digest.hexdigest()
