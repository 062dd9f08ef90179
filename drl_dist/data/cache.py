"""A cache of whole shards on the node's disk, bounded in size and shared by all processes of the node.

A process holds a shared lock on each shard that it reads; a process that needs room removes the least recently used
shards that are not locked. Locks end with their process, so a killed worker leaves nothing to repair. Shards on a local
filesystem are read in place.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import REQUEST_BYTES, Folder
from drl_dist.data.shards import ShardRow
from drl_dist.data.substitutes import DamageError

ROOM_DEADLINE = 45.0
"""Seconds to wait for other processes to release their shards."""
_POLL = 0.05
NOTE = "held.json"
"""File with the bytes that the cache holds at most."""
_HELD = "drl_dist.cache.bytes"
_MORE = 32
"""Where so many shards are looked at for room, one more than needed is removed."""
_OWN = re.compile(r"[0-9a-f]{64}\.(tar|part)")


class OpenShard:
    """A verified shard that stays on disk and readable until it is closed."""

    def __init__(self, row: ShardRow, descriptor: int) -> None:
        self.row = row
        self._descriptor: int | None = descriptor

    def read_sample(self, sample: int) -> bytes:
        """The tar members of one sample: headers and contents."""
        if self._descriptor is None:
            raise ValueError(f"{self.row.name} is closed")
        start, stop = self.row.span(sample)
        return os.pread(self._descriptor, stop - start, start)

    def close(self) -> None:
        """Release the shard, which may then be evicted."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class ShardCache:
    """Opens shards of one folder, fetching them into the cache first if they are not on a local filesystem.

    Args:
        url: folder of the shards.
        cache_dir: the node's folder for shards of all data sets; by default one in the system's temporary folder.
        max_bytes: limit on the total size of the shards in it. Other files there are neither counted nor removed.
    """

    def __init__(self, url: str, *, cache_dir: str | None = None, max_bytes: int = 20 * 2**30) -> None:
        self._folder, self._max_bytes = Folder(url), max_bytes
        self._source = self._folder.local
        default = Path(tempfile.gettempdir()) / f"drl_dist-shards-{os.getuid()}"
        self._dir = Path(cache_dir) if cache_dir else default
        if self._source is None:
            try:
                self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                if cache_dir is None and self._dir.stat().st_uid != os.getuid():
                    raise PermissionError(errno.EPERM, "it belongs to another user", str(self._dir))
            except OSError as error:
                raise UserError(
                    "loader.cache_dir",
                    got=str(error),
                    expected="a folder that can be written",
                    remedy="set loader.cache_dir to another folder",
                ) from error

    def open(self, row: ShardRow, *, patient: bool = False, stop: Callable[[], bool] = lambda: False) -> OpenShard:
        """Open a shard, verified against its size and checksum.

        Args:
            row: the shard's row of the index.
            patient: wait for room in the cache without a deadline, instead of `ROOM_DEADLINE` seconds.
            stop: polled while fetching and waiting; the attempt ends once it returns True.

        Raises:
            DamageError: the shard is missing, or differs from its row.
            UserError: the storage does not answer, or the cache has no room.
            InterruptedError: `stop` returned True.
        """
        if self._source is not None:
            return self._open_in_place(row, self._source / row.name)
        path = self._dir / f"{row.sha256}.tar"
        deadline = time.monotonic() + ROOM_DEADLINE
        while True:
            # Other processes wait here until the first one has fetched the shard.
            with self._locked(f"{row.sha256}.lock"):
                descriptor = self._try_open(path, row)
                if descriptor is None and self._fetch(row, path, stop):
                    descriptor = self._try_open(path, row)
            if descriptor is not None:
                return OpenShard(row, descriptor)
            if stop():
                raise InterruptedError(f"stopped waiting for {row.name}")
            if not patient and time.monotonic() > deadline:
                raise UserError(
                    f"cache folder {self._dir}",
                    got=f"shards in use that leave no room for {row.name}",
                    expected=f"{row.size} bytes below the bound of {self._max_bytes} bytes",
                    remedy="raise loader.cache_gib, or give each run its own loader.cache_dir",
                )
            time.sleep(_POLL)

    def _open_in_place(self, row: ShardRow, path: Path) -> OpenShard:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise _damaged(str(path), "no such file", row) from error
        except OSError as error:
            raise UserError(
                f"shard {path}", got=str(error), expected="a file that can be read", remedy="make it readable"
            ) from error
        try:
            digest, size = hashlib.sha256(), 0
            while block := os.pread(descriptor, REQUEST_BYTES, size):
                digest.update(block)
                size += len(block)
            _verify(str(path), row, size, digest.hexdigest())
        except BaseException:
            os.close(descriptor)
            raise
        return OpenShard(row, descriptor)

    def _try_open(self, path: Path, row: ShardRow) -> int | None:
        """A descriptor with a shared lock on a cached shard, None if it is not cached."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        # Another process may have evicted the file between the two calls.
        if status.st_nlink == 0 or status.st_size != row.size:
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            os.utime(path)
        return descriptor

    def _fetch(self, row: ShardRow, path: Path, stop: Callable[[], bool]) -> bool:
        """Fetch a shard into the cache; False if there is no room at present."""
        part = path.with_suffix(".part")
        where = self._folder.url_of(row.name)
        try:
            file = self._reserve(row, part)
            if file is None:
                return False
            with file:
                size, sha256 = self._download(row, file, stop)
                if (size, sha256) != (row.size, row.sha256):
                    # Download once more: the first copy may have been damaged in transit.
                    file.seek(0)
                    size, sha256 = self._download(row, file, stop)
                _verify(where, row, size, sha256)
                # Without the lock, a process that sums up file sizes could miss this file under both of its names.
                with self._locked("room.lock"):
                    part.replace(path)
        except FileNotFoundError as error:
            raise _damaged(where, "no such file", row) from error
        except InterruptedError:
            raise
        except OSError as error:
            raise UserError(
                f"cache folder {self._dir}",
                got=str(error),
                expected=f"room for {row.size} bytes",
                remedy="make room there, or set loader.cache_dir to another folder",
            ) from error
        finally:
            part.unlink(missing_ok=True)
        return True

    def _download(self, row: ShardRow, file: BinaryIO, stop: Callable[[], bool]) -> tuple[int, str]:
        """Copy a shard into a file; returns size and SHA-256 of the received bytes."""
        digest, size = hashlib.sha256(), 0
        for start in range(0, row.size, REQUEST_BYTES):
            if stop():
                raise InterruptedError(f"stopped fetching {row.name}")
            block = self._folder.read(row.name, start, min(start + REQUEST_BYTES, row.size))
            digest.update(block)
            size += len(block)
            file.write(block)
        file.flush()
        return size, digest.hexdigest()

    def _reserve(self, row: ShardRow, part: Path) -> BinaryIO | None:
        """A locked file of the shard's full size, so that other processes count it; None if there is no room."""
        with self._locked("room.lock"):
            held = self._held()
            if held is None or held + row.size > self._max_bytes:
                held = self._evict(self._max_bytes - row.size, keep=part)
            if held + row.size > self._max_bytes:
                return None
            self._note(held + row.size)
            file = part.open("wb")
            fcntl.flock(file, fcntl.LOCK_SH)
            file.truncate(row.size)
            return file

    def _held(self) -> int | None:
        """What all shards together take at most, in bytes, without looking at them; None if that is not known.

        Those that were given up since are still counted. Whoever would not have room then looks at all of them.
        """
        try:
            return int(json.loads((self._dir / NOTE).read_bytes())[_HELD])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _note(self, held: int) -> None:
        """Remember it for all processes of the node, unless somebody else's file is in the place."""
        path = self._dir / NOTE
        if self._held() is None and path.exists():
            return
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps({_HELD: held}))
        draft.replace(path)

    def _evict(self, target: int, *, keep: Path) -> int:
        """Remove unlocked shards, least recently used first, until at most `target` bytes remain; what remains.

        Of many shards a few more are removed, so that not each one that is fetched has to look at all of them.
        """
        with os.scandir(self._dir) as entries:
            found = {entry.name: entry for entry in entries}
        files: list[tuple[float, int, Path]] = []
        for name, entry in found.items():
            # The cache's own files are named by a checksum and have a lock file, made before they were fetched.
            is_own = _OWN.fullmatch(name) is not None and f"{name.partition('.')[0]}.lock" in found
            if is_own and not entry.is_symlink() and name != keep.name:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    files.append((status.st_mtime, status.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in files)
        more = len(files) // _MORE if total > target else 0
        for _, size, path in sorted(files):
            if total <= target and not more:
                break
            if _remove_unused(path):
                more -= total <= target
                total -= size
        return total

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self._dir / name).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _remove_unused(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _verify(where: str, row: ShardRow, size: int, sha256: str) -> None:
    if size != row.size:
        raise _damaged(where, f"{size} bytes", row)
    if sha256 != row.sha256:
        raise _damaged(where, f"SHA-256 {sha256[:16]}...", row)


def _damaged(where: str, got: str, row: ShardRow) -> DamageError:
    return DamageError(
        f"shard {where}",
        got=got,
        expected=f"{row.size} bytes with SHA-256 {row.sha256[:16]}... as its index says",
        remedy="copy the shard again, or remove the folder and prepare the data again",
    )
