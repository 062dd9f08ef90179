"""Places of files and folders, on this machine or in a bucket, parsed from text and taken literally.

Storage libraries give some characters a meaning: ``::`` chains file systems, ``#`` and ``?`` select versions of an
object, ``*`` and ``[`` match many files, ``%20`` is a space. None of that applies here. A name works exactly as it is
written, or it is refused before anything is read or written.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

BUCKET_SCHEMES = ("gs", "gcs", "s3", "s3a")
EXPECTED = "a path, file://, gs:// or s3://"
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095
"""Longest name and longest path that Linux accepts."""
MAX_KEY_BYTES = 1024
"""Longest object name that Google Cloud Storage and S3 accept."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|arn:[A-Za-z0-9:_-]+")
_NEARLY_A_URL = re.compile(rf"({'|'.join(('file', *BUCKET_SCHEMES))}):/", re.IGNORECASE)
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Some methods of gcsfs and s3fs take these for versions or patterns.
_OF_BUCKETS = re.compile(r"[#?*\[\]]")


@dataclass(frozen=True)
class Place:
    """The place of a folder or a file."""

    scheme: str
    """``file`` for this machine, or one of `BUCKET_SCHEMES`."""
    path: str
    """On this machine, the path as written, without trailing slashes; otherwise ``BUCKET`` or ``BUCKET/FOLDER``."""

    @property
    def is_local(self) -> bool:
        """Whether the place is on this machine."""
        return self.scheme == "file"

    @property
    def bucket(self) -> str:
        """Name of the bucket; only for places that are not on this machine."""
        return self.path.partition("/")[0]

    @property
    def is_absolute(self) -> bool:
        """Whether the place is the same in every process, whatever its working directory."""
        return not self.is_local or self.path.startswith("/")


class PlaceError(ValueError):
    """A text names no place, or one that a storage library would misread.

    Args:
        got: what was found.
        expected: what would have been accepted.
    """

    def __init__(self, got: str, expected: str) -> None:
        self.got, self.expected = got, expected
        super().__init__(f"{got}, where {expected} is expected")


def parse_place(text: str) -> Place:
    """The folder or file that a text names.

    Raises:
        PlaceError: the text names no place that can be used literally.
    """
    match = _SCHEME.match(text)
    scheme, path = (match[1], text[match.end() :]) if match else ("file", text)
    flaw = _flaw_of_characters(text)
    if flaw is None:
        if scheme in BUCKET_SCHEMES:
            flaw = _flaw_in_bucket(path)
        elif scheme != "file" or not text:
            flaw = "", EXPECTED
        else:
            flaw = (_flaw_of_file_url(path) if match else _flaw_of_relative(path)) or _flaw_of_length(path)
    if flaw is not None:
        found, expected = flaw
        # Credentials before the bucket must not reach a log.
        name = re.sub(r"://[^/]*@", "://...@", shown(text))
        raise PlaceError(f"{name}, {found}" if found else name, expected)
    return Place(scheme, path.rstrip("/") or "/")


def parse_file(text: str) -> tuple[str, str]:
    """The folder and the name of the file that a text names; joined by a slash they are the file's place.

    Raises:
        PlaceError: the text names no place, or no file.
    """
    place = parse_place(text)
    folder, slash, name = text.rpartition("/")
    if name in ("", ".", "..") or (not place.is_local and "/" not in place.path):
        raise PlaceError(shown(text), "a place with a file's name at its end")
    return (folder or "/" if slash else "."), name


def path_here(text: str) -> Path:
    """The path on this machine that a text names, relative to the working directory.

    Raises:
        PlaceError: the text names no place, or one in a bucket.
    """
    place = parse_place(text)
    if not place.is_local:
        raise PlaceError(shown(text), "a path on this machine")
    return Path(place.path)


def joined(place: str, name: str) -> str:
    """The place of a file or folder inside another place."""
    return f"{place.rstrip('/')}/{name}"


def in_full(place: str) -> str:
    """A place as any process may be given it, whatever its working directory."""
    parsed = parse_place(place)
    return str(Path(parsed.path).resolve()) if parsed.is_local else place


def shown(text: str) -> str:
    """A place as shown in an error message: unchanged if it prints on one line, otherwise as a Python literal."""
    return text if text and text.isprintable() and text == text.strip() else ascii(text)


def _flaw_of_characters(text: str) -> tuple[str, str] | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "which is not UTF-8", "a name in UTF-8"
    if _CONTROL.search(text):
        return "with a control character in it", "a name without line ends, tabs and other control characters"
    return None


def _flaw_in_bucket(path: str) -> tuple[str, str] | None:
    bucket, _, key = path.partition("/")
    if "@" in bucket:
        return "with @ in its bucket", "the name of a bucket after ://, and keys in the client's own settings"
    if not _BUCKET.fullmatch(bucket):
        return (f"whose bucket is {shown(bucket)}" if bucket else "without a bucket"), "the name of a bucket after ://"
    return _flaw_in_key(key)


def _flaw_in_key(key: str) -> tuple[str, str] | None:
    if found := _OF_BUCKETS.search(key):
        return f"with {found[0]} in it", "a folder without # ? * [ ], which mean something else to clients of buckets"
    if any(part in ("", ".", "..") for part in key.rstrip("/").split("/")) and key.strip("/"):
        return "with an empty, a . or a .. folder in it", "the folder's name in its plain form"
    if key != key.strip():
        return "with white space at its end", "a name without it"
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"of {len(key.encode())} bytes", f"at most {MAX_KEY_BYTES} bytes after the bucket"
    return None


def _flaw_of_file_url(path: str) -> tuple[str, str] | None:
    if not path.startswith("/"):
        return "which names a machine or a relative path", "file:/// and an absolute path, or the path alone"
    if found := re.search(r"[%?#]", path):
        # Some libraries take %20 for a space, others do not.
        return f"with {found[0]} in a file:// URL", "the path alone, which is taken literally"
    return None


def _flaw_of_relative(text: str) -> tuple[str, str] | None:
    if text.startswith("/"):
        return None
    if _NEARLY_A_URL.match(text) or "://" in text:
        return "", EXPECTED
    if text.startswith("~"):
        return "whose ~ the shell did not expand", "the path in full, or ./ before a name that begins with ~"
    if _WINDOWS_DRIVE.match(text):
        return "a Windows path", EXPECTED
    if text != text.lstrip():
        return "with white space before it", "a path without it"
    return None


def _flaw_of_length(path: str) -> tuple[str, str] | None:
    longest = max(len(part) for part in os.fsencode(path).split(b"/"))
    if longest > MAX_NAME_BYTES:
        return f"with a name of {longest} bytes in it", f"names of at most {MAX_NAME_BYTES} bytes"
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        return f"of {len(os.fsencode(path))} bytes", f"at most {MAX_PATH_BYTES} bytes"
    return None
