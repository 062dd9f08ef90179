"""Selection of a folder's image files, and counts of the files left out."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, features

PICTURES = (
    "AVIF",
    "BMP",
    "DIB",
    "DDS",
    "GIF",
    "ICNS",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PCX",
    "PNG",
    "PPM",
    "PSD",
    "QOI",
    "SGI",
    "SUN",
    "TGA",
    "TIFF",
    "WEBP",
)
"""Pillow's formats of pixel images; of its other formats, some hold measurements or films, some start programs."""
EARLIER_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes that versions before `PICTURES` accepted."""
BY_PROGRAMS = frozenset(
    {
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "__macosx",
        "$recycle.bin",
        "system volume information",
        "recycler",
        "lost+found",
    }
)
"""Folders, in lower case, in which file systems and programs keep thumbnails and deleted files."""
UNREADABLE_PICTURES = frozenset(
    [
        ".3fr",
        ".ai",
        ".arw",
        ".avif",
        ".avifs",
        ".bpg",
        ".cdr",
        ".cr2",
        ".cr3",
        ".crw",
        ".dng",
        ".emf",
        ".eps",
        ".erf",
        ".exr",
        ".fit",
        ".fits",
        ".flif",
        ".hdr",
        ".heic",
        ".heics",
        ".heif",
        ".hif",
        ".iiq",
        ".j2c",
        ".j2k",
        ".jls",
        ".jp2",
        ".jpc",
        ".jpf",
        ".jpx",
        ".jxl",
        ".jxr",
        ".kdc",
        ".kra",
        ".mef",
        ".mos",
        ".mrw",
        ".nef",
        ".nrw",
        ".orf",
        ".pef",
        ".pfm",
        ".ps",
        ".psb",
        ".raf",
        ".raw",
        ".rw2",
        ".sr2",
        ".srw",
        ".svg",
        ".svgz",
        ".wdp",
        ".webp",
        ".wmf",
        ".x3f",
        ".xcf",
    ]
)
"""Suffixes of pictures, which are reported as such if Pillow cannot read them."""
MOST_KINDS = 12
"""Number of kinds of left-out files that are named in a line; the rest are added up."""


def picture_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the pictures that the installed Pillow reads."""
    # Pillow registers these three formats even if it was built without the library that reads them.
    missing = {
        name
        for name, feature in (("AVIF", "avif"), ("WEBP", "webp"), ("JPEG2000", "jpg_2000"))
        if not features.check(feature)
    }
    found = {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in PICTURES and name in Image.OPEN and name not in missing
    }
    # A portable float map has no range of values that could become 0 to 255.
    return frozenset(found - {".pfm"})


def picture_formats() -> tuple[str, ...]:
    """Those of `PICTURES` that the installed Pillow reads, in the order in which it tries them.

    Without this limit, Pillow would recognise other formats by content, and e.g. run Ghostscript on EPS.
    """
    Image.init()
    return tuple(name for name in Image.ID if name in PICTURES)


@dataclass(frozen=True)
class Listing:
    """The images below a folder, and counts of its other files."""

    sizes: Mapping[str, int]
    """Size in bytes of each image file, by its path below the folder, in order of the paths."""
    left_out: Mapping[str, int]
    """Number of files left out, by kind."""


def list_images(folder: Path) -> tuple[Listing, Listing]:
    """The images below a folder, as selected now and as selected by earlier versions.

    Links to files are followed, links to folders are not. Names that begin with a dot and the folders of `BY_PROGRAMS`
    are left out.
    """
    suffixes = picture_suffixes()
    now: dict[str, int] = {}
    before: dict[str, int] = {}
    left_now: Counter[str] = Counter()
    left_before: Counter[str] = Counter()
    # Folders to list, each with the excluded folder that contains it, if any.
    todo: list[tuple[str, str | None]] = [("", None)]
    while todo:
        below, rule = todo.pop()
        try:
            with os.scandir(folder / below) as entries:
                found = list(entries)
        except OSError as error:
            for left in (left_now, left_before):
                left[f"folder that cannot be listed ({error.strerror})"] += 1
            continue
        for entry in found:
            path = f"{below}/{entry.name}" if below else entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    todo.append((path, rule or _left_out_folder(entry.name)))
                    continue
                kind, size = _kind(entry)
            except OSError as error:
                kind, size = f"that cannot be looked at ({error.strerror})", 0
            suffix = PurePosixPath(entry.name).suffix.lower()
            if kind is None and suffix in EARLIER_SUFFIXES:
                before[path] = size
            else:
                left_before[kind or _by_suffix(suffix, suffixes)] += 1
            if rule is not None:
                left_now[f"in {rule}"] += 1
            elif kind is None and entry.name.startswith("."):
                left_now["hidden"] += 1
            elif kind is None and suffix in suffixes:
                now[path] = size
            else:
                left_now[kind or _by_suffix(suffix, suffixes)] += 1
    return Listing(dict(sorted(now.items())), left_now), Listing(dict(sorted(before.items())), left_before)


def _left_out_folder(name: str) -> str | None:
    return printable(name) if name.startswith(".") or name.lower() in BY_PROGRAMS else None


def _kind(entry: os.DirEntry[str]) -> tuple[str | None, int]:
    """Kind of a directory entry, None for a regular file, and the size of a regular file in bytes."""
    try:
        found = entry.stat()
    except OSError:
        if entry.is_symlink():
            return "link to nothing", 0
        raise
    if stat.S_ISREG(found.st_mode):
        return None, found.st_size
    if stat.S_ISDIR(found.st_mode):
        return "link to a folder (not followed)", 0
    return ("pipe" if stat.S_ISFIFO(found.st_mode) else "socket" if stat.S_ISSOCK(found.st_mode) else "device"), 0


def _by_suffix(suffix: str, readable: frozenset[str]) -> str:
    if not suffix:
        return "without a suffix"
    if suffix in UNREADABLE_PICTURES and suffix not in readable:
        return f"{suffix} (Pillow cannot read it)"
    return printable(suffix)


def counted_kinds(kinds: Mapping[str, int]) -> str:
    """A line with the numbers of files by kind: pictures first, then the most frequent kinds."""
    order = sorted((kind for kind in kinds if kinds[kind]), key=lambda kind: (" " not in kind, -kinds[kind], kind))
    shown = [f"{kinds[kind]} {_plural(kind, kinds[kind])}" for kind in order[:MOST_KINDS]]
    rest = order[MOST_KINDS:]
    if rest:
        shown.append(f"{sum(kinds[kind] for kind in rest)} of {len(rest)} other kinds")
    return ", ".join(shown)


def _plural(kind: str, count: int) -> str:
    first, _, rest = kind.partition(" ")
    counts = count > 1 and first in ("file", "link", "folder", "pipe", "socket", "device")
    return (f"{first}s" if counts else first) + (f" {rest}" if rest else "")


def utf8(name: str) -> str:
    r"""A file name as valid UTF-8: a byte that is not UTF-8 becomes \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """A name with all unprintable characters escaped, as shown in a line of a terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in utf8(text)
    )
