"""Access to images in a zip archive by their names without folders; nothing is unpacked to disk."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from datasets_prep._files import ABSENT, content_of_crc, stamp_of, unread_item
from datasets_prep._listing import BY_PROGRAMS, printable, utf8
from datasets_prep._source import Encoded, Item
from drl_dist.common.errors import UserError

MAX_MEMBER_BYTES = 64 * 2**20
READABLE_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
COMPRESSION_NAMES = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 97: "WavPack", 98: "PPMd"}


@dataclass(frozen=True)
class Archive:
    """An opened archive."""

    file: zipfile.ZipFile
    members: Mapping[str, zipfile.ZipInfo]
    """Members by their names without folders."""
    left_out: Mapping[str, int]
    """Number of excluded members of each kind."""


def open_archive(path: Path) -> Archive:
    """Open an archive and read its directory, which is cached until the file changes.

    Raises:
        UserError: the archive cannot be read, or two different members have the same name.
    """
    try:
        return _open(path, stamp_of(path.stat()))
    except UserError:
        raise
    except Exception as error:
        # Damage raises exceptions of many classes, such as UnicodeDecodeError and NotImplementedError.
        raise UserError(
            f"source {printable(str(path))}",
            got=f"a damaged archive, or one of an unusual kind ({printable(str(error)) or type(error).__name__})",
            expected="a zip archive that Python's zipfile reads",
            remedy="download it again, or unpack it and give the folder",
        ) from error


@lru_cache(maxsize=1)
def _open(path: Path, stamp: bytes) -> Archive:
    del stamp  # Part of the cache key: distinguishes a file from one that replaced it.
    file = zipfile.ZipFile(path)
    members: dict[str, zipfile.ZipInfo] = {}
    left_out: Counter[str] = Counter()
    for info in file.infolist():
        if info.is_dir():
            continue
        # Some Windows programs write backslashes, against the standard.
        *folders, name = re.split(r"[/\\]", info.filename)
        if not name:
            continue
        by_program = next((folder for folder in folders if folder.lower() in BY_PROGRAMS), None)
        if by_program is not None:
            left_out[f"in {printable(by_program)}"] += 1
        elif name.startswith("."):
            left_out["hidden"] += 1
        elif (other := members.setdefault(name, info)) is not info:
            if (other.CRC, other.file_size) != (info.CRC, info.file_size):
                raise UserError(
                    f"source {printable(str(path))}",
                    got=f"two different files named {printable(name)} ({printable(other.filename)} and "
                    f"{printable(info.filename)})",
                    expected="one file of each name",
                    remedy="remove one of them from the archive",
                )
            left_out["repeated in the archive"] += 1
    return Archive(file, members, left_out)


def hindrance(info: zipfile.ZipInfo) -> str:
    """Reason why a member cannot be unpacked, according to its directory entry; empty if there is none."""
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.compress_type not in READABLE_COMPRESSION:
        method = COMPRESSION_NAMES.get(info.compress_type, f"method {info.compress_type}")
        return f"compressed by {method}, which Python's zipfile cannot unpack"
    if info.file_size > MAX_MEMBER_BYTES:
        return f"{info.file_size} bytes, more than {MAX_MEMBER_BYTES}"
    return ""


def member_item(archive: Archive, name: str, size: int | None, decode: Callable[[bytes], Encoded]) -> Item:
    """The image in a member, which is unpacked here and decoded later.

    Args:
        archive: the archive.
        name: name of the member, without folders.
        size: size in bytes when the source was listed; None if the member was missing.
        decode: turns its bytes into an image.
    """
    info = archive.members.get(name)
    if info is None:
        return unread_item(name, FileNotFoundError(f"{name} is not in the archive"))
    if info.file_size != size:
        return unread_item(name, ValueError("the archive was replaced"))
    if reason := hindrance(info):
        return unread_item(name, ValueError(reason))
    try:
        data = archive.file.read(info)
    except MemoryError as error:
        return unread_item(name, error)
    except Exception as error:  # noqa: BLE001 - each compression method raises its own exceptions for damaged data
        return unread_item(name, ValueError(f"{type(error).__name__}: {error}"))
    token = content_of_crc(info.CRC)
    return Item(utf8(name), lambda: decode(data), content=token, stamp=token)


def member_stamp(archive: Archive, name: str) -> bytes:
    """The stamp of a member."""
    info = archive.members.get(name)
    return ABSENT if info is None else content_of_crc(info.CRC)
