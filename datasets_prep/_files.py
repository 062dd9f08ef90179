"""Reading of image files, with two short values that show whether a file is still the same.

The *content* is a checksum of a file's bytes. The *stamp* comes from the file system, or from the directory of an
archive, and is known without reading the file.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from datasets_prep._listing import utf8
from datasets_prep._source import Encoded, Item

WIDTH = 8
"""Size of a stamp and of a content, in bytes."""
UNKNOWN = bytes(WIDTH)
"""Content of an image that could not be read, or a stamp that cannot be relied on."""
ABSENT = b"\xff" * WIDTH
"""Stamp of a missing image."""
FINE_SETTLES, COARSE_SETTLES = 0.05, 2.0
"""Seconds after which a further change is certain to change a file's times, on file systems whose times are finer than
a second, and on others."""
MAX_FILE_BYTES = 2**31
"""Largest file to read; Pillow refuses to decode larger ones."""


def content_of(data: bytes) -> bytes:
    """Checksum that distinguishes the bytes of an image from others."""
    return hashlib.blake2b(data, digest_size=WIDTH).digest()


def content_of_crc(crc: int) -> bytes:
    """The content as computed from a CRC-32, which is known without reading for members of a zip archive."""
    return (crc | 1 << 32).to_bytes(WIDTH, "big")


def content_by_crc(data: bytes) -> bytes:
    """The content as computed from the CRC-32 of the bytes."""
    return content_of_crc(zlib.crc32(data))


def stamp_of(found: os.stat_result) -> bytes:
    """The stamp of a file, from its size and its times, of which the change time cannot be set back."""
    return hashlib.blake2b(
        f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}".encode(), digest_size=WIDTH
    ).digest()


def settled_stamp(found: os.stat_result) -> bytes:
    """The stamp of a file that is about to be read, or `UNKNOWN` if it has just changed: a further change might then
    not alter its times."""
    return stamp_of(found) if time.time() - found.st_ctime >= _settles(found) else UNKNOWN


def _settles(found: os.stat_result) -> float:
    return FINE_SETTLES if found.st_ctime_ns % 10**9 else COARSE_SETTLES


def current_stamp(path: Path) -> bytes:
    """The current stamp of a file, `ABSENT` if its status cannot be read."""
    try:
        return stamp_of(path.stat())
    except OSError:
        return ABSENT


def _open_at_once(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe would wait for its other end.
    return os.open(path, flags | os.O_NONBLOCK)


def read_file(path: Path, size: int | None = None) -> tuple[bytes, bytes]:
    """The bytes of a file and its stamp.

    Args:
        path: the file.
        size: size in bytes when the source was listed, if known.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a regular file, too large, or changes.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            for _ in range(3):
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise ValueError("no regular file any more")
                if before.st_size > MAX_FILE_BYTES:
                    raise ValueError(f"{before.st_size} bytes, more than any image that is decoded")
                if size is not None and before.st_size != size:
                    raise ValueError(f"{before.st_size} bytes, {size} when the source was listed")
                stamp = settled_stamp(before)
                file.seek(0)
                data = file.read()
                if stamp_of(os.fstat(file.fileno())) == stamp_of(before):
                    return data, stamp
    except OSError as error:
        # Without the path: the records of shards must not depend on where the source is.
        raise type(error)(error.errno, error.strerror) from error
    raise ValueError("changed while it was read")


def file_item(
    name: str,
    path: Path,
    size: int | None,
    decode: Callable[[bytes], Encoded],
    content: Callable[[bytes], bytes] = content_of,
    *,
    label: int | None = None,
    attributes: tuple[int, ...] | None = None,
) -> Item:
    """The image in a file of its own, which is read here and decoded later."""
    try:
        data, stamp = read_file(path, size)
    except (OSError, ValueError, MemoryError) as error:
        return unread_item(name, error)
    return Item(utf8(name), lambda: decode(data), label, attributes, content=content(data), stamp=stamp)


def unread_item(name: str, error: Exception) -> Item:
    """An image whose bytes could not be read; the error is raised when it would be decoded."""

    def fail() -> Encoded:
        raise error

    return Item(utf8(name), fail, content=UNKNOWN, stamp=UNKNOWN)
