"""Search for the newest checkpoint whose checksums match, and reading it in the same pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from drl_dist.checkpoints.format import CHECKSUMS, CONFIG, PARTS, RESTORE_REMEDY, STATE, parse_state, part_file
from drl_dist.checkpoints.storage import StoredCheckpoint, stored_checkpoints
from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import REQUEST_BYTES, Folder

_FILES = (CONFIG, STATE, *map(part_file, PARTS))
_Depth = Literal["sizes", "checksums", "contents"]
"""How far a checkpoint is looked at; "contents" compares checksums and keeps what was read."""


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """A checkpoint folder, read once and found to be what its checksums say."""

    url: str
    files: Mapping[str, bytes] = field(repr=False)
    """Content by name of configuration, state and all parts; see `drl_dist.checkpoints.format.parse_checkpoint`."""

    @property
    def step(self) -> int:
        """Training steps done."""
        return parse_state(self.files[STATE], source=f"checkpoint file {self.url}/{STATE}").step


class _Flaw(Exception):
    """What is wrong with a finished checkpoint, as a phrase that names the file."""


def _say(line: str) -> None:
    print(line, flush=True)


def newest_verified_checkpoint(run_url: str, tell: Callable[[str], None] = _say) -> StoredCheckpoint | None:
    """The checkpoint of most steps directly below a run folder that verifies, None if none was ever finished.

    Every file is read and compared with its SHA-256.

    Args:
        run_url: folder of the run.
        tell: gets one line for each newer checkpoint that is passed over, which names it and its file.

    Raises:
        UserError: the storage does not answer, or finished checkpoints are there and none of them verifies.
    """
    found = _newest(run_url, tell, lambda _: "checksums")
    return found[0] if found else None


def newest_to_resume(run_url: str, num_steps: int, tell: Callable[[str], None] = _say) -> StoredCheckpoint | None:
    """What a run of `num_steps` steps resumes from, as far as sizes show; arguments and errors as
    `newest_verified_checkpoint`.

    Contents are compared when the checkpoint is restored. One of all steps, which nobody restores, is read here.
    """
    found = _newest(run_url, tell, lambda stored: "checksums" if stored.step >= num_steps else "sizes")
    return found[0] if found else None


def read_newest_checkpoint(run_url: str, tell: Callable[[str], None] = _say) -> VerifiedCheckpoint | None:
    """As `newest_verified_checkpoint`, with what was read while it was verified: each file is read once."""
    found = _newest(run_url, tell, lambda _: "contents")
    return VerifiedCheckpoint(found[0].url, found[1]) if found else None


def read_stored_checkpoint(url: str) -> VerifiedCheckpoint:
    """One checkpoint folder, read and verified in one pass.

    Raises:
        UserError: the storage does not answer, or the checkpoint is unfinished or does not verify.
    """
    try:
        return VerifiedCheckpoint(url, _read(Folder(url), Folder(url).sizes(), "contents"))
    except _Flaw as flaw:
        raise UserError(
            f"checkpoint {url}", got=str(flaw), expected="files that agree with its checksums", remedy=RESTORE_REMEDY
        ) from flaw


def _newest(
    run_url: str, tell: Callable[[str], None], depth: Callable[[StoredCheckpoint], _Depth]
) -> tuple[StoredCheckpoint, dict[str, bytes]] | None:
    """The newest checkpoint without a flaw, and its contents if they are to be kept."""
    flaws: list[str] = []
    for stored in stored_checkpoints(run_url):
        folder = Folder(stored.url)
        sizes = folder.sizes()
        if CHECKSUMS not in sizes:
            tell(f"passing over checkpoint {stored.url}: it is unfinished (no {CHECKSUMS})")
            continue
        try:
            return stored, _read(folder, sizes, depth(stored))
        except _Flaw as flaw:
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


def _read(folder: Folder, sizes: Mapping[str, int], depth: _Depth) -> dict[str, bytes]:
    """Look at a checkpoint folder; the contents that are to be kept.

    Raises:
        _Flaw: it is not what its checksums say.
    """
    if CHECKSUMS not in sizes:
        raise _Flaw(f"no {CHECKSUMS}")
    try:
        entries: dict[str, Any] = json.loads(folder.read(CHECKSUMS))
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _Flaw(f"{CHECKSUMS} is damaged") from error
    names = tuple(dict.fromkeys((*_FILES, *expected)))
    for name in names:
        if name not in expected:
            raise _Flaw(f"{CHECKSUMS} does not list {name}")
        size = expected[name][0]
        if sizes.get(name) != size:
            raise _Flaw(f"{name} has {sizes[name]} bytes, expected {size}" if name in sizes else f"{name} is missing")
    contents: dict[str, bytes] = {}
    if depth == "sizes":
        return contents
    for name in names:
        size, sha256 = expected[name]
        is_kept = depth == "contents" and name in _FILES
        digest, content = _read_file(folder, name, size, is_kept=is_kept)
        if digest != sha256 and folder.local is None:
            # A bit that flipped on the way is not there the second time.
            digest, content = _read_file(folder, name, size, is_kept=is_kept)
        if digest != sha256:
            raise _Flaw(f"{name} has SHA-256 {digest[:16]}..., expected {sha256[:16]}...")
        if is_kept:
            contents[name] = content
    return contents


def _read_file(folder: Folder, name: str, size: int, *, is_kept: bool) -> tuple[str, bytes]:
    """SHA-256 of a file, and its content if it is to be kept."""
    digest, blocks = hashlib.sha256(), list[bytes]()
    for start in range(0, size, REQUEST_BYTES):
        block = folder.read(name, start, min(start + REQUEST_BYTES, size))
        digest.update(block)
        if is_kept:
            blocks.append(block)
    return digest.hexdigest(), b"".join(blocks)
