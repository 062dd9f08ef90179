"""The files of images: their bytes, and two short values that tell whether they are still the same.

The *content* is a checksum of a file's bytes. The *stamp* comes from the file system, or from the directory of an
archive, and costs no reading.
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
"""Bytes of a stamp and of a content."""
UNKNOWN = bytes(WIDTH)
"""The content of an image that could not be read, or a stamp that tells nothing."""
ABSENT = b"\xff" * WIDTH
"""The stamp of an image that is not there."""
FINE_SETTLES, COARSE_SETTLES = 0.05, 2.0
"""Seconds after which a further change gives a file another time, where times are finer than a second and elsewhere."""
MAX_FILE_BYTES = 2**31
"""Pillow refuses the pixels of anything larger."""


def content_of(data: bytes) -> bytes:
    """Tells the bytes of an image from others."""
    return hashlib.blake2b(data, digest_size=WIDTH).digest()


def content_of_crc(crc: int) -> bytes:
    """The same for a CRC-32 that is known without reading, as that of a member of a zip archive."""
    return (crc | 1 << 32).to_bytes(WIDTH, "big")


def content_by_crc(data: bytes) -> bytes:
    """As `content_of_crc`, of the bytes."""
    return content_of_crc(zlib.crc32(data))


def stamp_of(found: os.stat_result) -> bytes:
    """The stamp of a file: its size, and the times of its last change, which nobody can set back."""
    return hashlib.blake2b(
        f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}".encode(), digest_size=WIDTH
    ).digest()


def settled_stamp(found: os.stat_result) -> bytes:
    """The stamp of a file that is about to be read, or `UNKNOWN` if it has just changed: another change could then
    leave all of its times as they are."""
    return stamp_of(found) if time.time() - found.st_ctime >= _settles(found) else UNKNOWN


def _settles(found: os.stat_result) -> float:
    return FINE_SETTLES if found.st_ctime_ns % 10**9 else COARSE_SETTLES


def current_stamp(path: Path) -> bytes:
    """The stamp of a file now, `ABSENT` if it cannot be looked at."""
    try:
        return stamp_of(path.stat())
    except OSError:
        return ABSENT


def _open_at_once(path: str, flags: int) -> int:
    # Of a pipe, the other end would be waited for.
    return os.open(path, flags | os.O_NONBLOCK)


def read_file(path: Path, size: int | None = None) -> tuple[bytes, bytes]:
    """The bytes of a file and its stamp.

    Args:
        path: the file.
        size: its bytes when the source was listed, if that is known.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file or too large, or it changes.
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
        # Without the path, which the record of an image has no place for.
        raise type(error)(error.errno, error.strerror) from error
    raise ValueError("changed while it was read")


def file_item(
    name: str,
    path: Path,
    size: int | None,
    decode: Callable[[bytes], Encoded],
    content: Callable[[bytes], bytes] = content_of,
) -> Item:
    """The image in a file of its own, which is read here and decoded later."""
    try:
        data, stamp = read_file(path, size)
    except (OSError, ValueError, MemoryError) as error:
        return unread_item(name, error)
    return Item(utf8(name), lambda: decode(data), content=content(data), stamp=stamp)


def unread_item(name: str, error: Exception) -> Item:
    """An image whose bytes could not be read; the error is raised where it would be decoded."""

    def fail() -> Encoded:
        raise error

    return Item(utf8(name), fail, content=UNKNOWN, stamp=UNKNOWN)
