"""Access with deadlines and retries to files on this machine, on gs:// and on s3://.

Places are taken literally, see `drl_dist.common.places`. Filesystems are therefore opened by their class and given
paths, never URLs, and only methods are used that take one literal name: no ``rm``, no ``cat``, no ``glob``.

gcsfs waits up to five minutes on a stalled read, and longer on an address that does not answer. Here every request has
its own deadline and a few retries, and an address can be checked once, within half a minute, before work starts.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.spec import AbstractFileSystem

from drl_dist.common.errors import UserError
from drl_dist.common.places import Place, joined
from drl_dist.common.proxies import spare_loopback
from drl_dist.common.validation import file_of, place_of

# Storage emulators run on this machine.
spare_loopback(os.environ)

ADDRESS_VARIABLES = (
    "STORAGE_EMULATOR_HOST",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT",
    "GOOGLE_CLOUD_PROJECT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
"""Environment variables with the address of storage and how to access it; none of them is a secret."""
REACH_DEADLINE = 25.0
"""Seconds within which an address must answer."""
REQUEST_DEADLINE = 30.0
"""Seconds after which a request counts as stalled."""
REQUEST_BYTES = 8 * 2**20
"""Bytes of one request, few enough for a slow connection not to count as stalled."""
RETRY_PAUSES = (1.0, 4.0)
"""Seconds before the second and the third attempt."""
NO_ANSWER = "no answer"
"""What is said of every time limit that was passed."""

_THREADS = 8
# Name under which `write_local` writes a file until it is complete.
_PART = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)

T = TypeVar("T")
# Errors that another attempt cannot fix.
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError, TypeError)


def open_filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a place (a path, file://, gs:// or s3://), and the path in it.

    On this machine the path is absolute, otherwise it begins with the bucket.

    Raises:
        UserError: the URL names no place.
    """
    place = place_of(url)
    # Opened by its class, because fsspec would look for chains and versions in a URL.
    filesystem = fsspec.get_filesystem_class(place.scheme)(**_options(place.scheme))
    return filesystem, str(local_path(place)) if place.is_local else place.path


def local_path(place: Place) -> Path:
    """The absolute path of a place on this machine; the system resolves symbolic links and ``..`` in it."""
    return Path(place.path).absolute()


def _options(scheme: str) -> dict[str, Any]:
    """Options to open a filesystem with."""
    if scheme in ("gs", "gcs"):
        # gcsfs also logs, with a traceback, every error that it raises.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        # "md5" makes gcsfs compare the stored file with what it sent.
        options = {"use_listings_cache": False, "consistency": "md5"}
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            # Emulators lack the gRPC API that gcsfs would probe for up to a minute. gcsfs reads this when imported.
            os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
            return options | {"token": "anon", "project": "test"}
        return options
    if scheme in ("s3", "s3a"):
        return {
            "use_listings_cache": False,
            "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 2}},
        }
    return {}


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, run in a thread of its own.

    Raises:
        TimeoutError: `work` took longer than `seconds`; its thread is not stopped.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            failure.append(error)

    thread = threading.Thread(target=target, daemon=True, name="deadline")
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return outcome[0]


def check_reachable(url: str) -> None:
    """Return if the bucket of an object-store URL answers, or if a local place is a folder or can become one.

    Raises:
        UserError: the bucket does not answer within half a minute or does not exist, or a file is in the way of the
            local folder.
    """
    place = place_of(url)
    if place.is_local:
        _check_folder(url, local_path(place))
        return
    bucket = place.bucket

    # Imported before the deadline starts: this can take many seconds on a busy machine.
    _options(place.scheme)
    fsspec.get_filesystem_class(place.scheme)

    def probe() -> None:
        filesystem, _ = open_filesystem(url)
        try:
            filesystem.info(bucket)
        except PermissionError:
            return  # The bucket exists; it may be usable without permission to describe it.
        except FileNotFoundError:
            raise
        except OSError as error:
            # gcsfs raises a plain OSError for missing permission.
            if not str(error).startswith("Forbidden"):
                raise

    try:
        within(REACH_DEADLINE, probe)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(
            f"bucket {bucket} of {url}",
            got="no such bucket",
            expected="an existing bucket",
            remedy="create the bucket or correct the URL",
        ) from error
    except Exception as error:
        got = _describe(error)
        raise UserError(
            f"storage {url}",
            got=got,
            expected=f"{'one' if got == NO_ANSWER else 'an answer'} within {REACH_DEADLINE:.0f} s",
            remedy="check the address, the network and the credentials",
        ) from error


def _check_folder(url: str, path: Path) -> None:
    try:
        found = next(one for one in (path, *path.parents) if one.exists() or one.is_symlink())
        if found.is_dir():
            return
        got = f"a file at {found}" if found.exists() else f"a symbolic link to nothing at {found}"
    except OSError as error:
        got = _describe(error)
    raise UserError(f"folder {url}", got=got, expected="a folder, or room for one", remedy="choose another place")


def check_writable_file(url: str, what: str) -> None:
    """Return if a file can be written at a place, as far as can be checked without writing; `what` names it in errors.

    Raises:
        UserError: the place names no file, it is a folder, or its folder fails `check_reachable`.
    """
    folder, name = file_of(url, what)
    check_reachable(folder)
    local = Folder(folder).local
    if local is not None and (local / name).is_dir():
        raise UserError(what, got=f"the folder {url}", expected="a file, or room for one", remedy="choose another name")


@dataclass(frozen=True)
class Folder:
    """The files directly in one folder of any filesystem.

    Holds only the URL, so that it can be sent to another process, which opens connections at the first use.
    """

    url: str

    @property
    def local(self) -> Path | None:
        """The folder's path if it is on this machine, else None."""
        place = place_of(self.url)
        return local_path(place) if place.is_local else None

    def url_of(self, name: str) -> str:
        """URL of one file."""
        return joined(self.url, name)

    def sizes(self) -> dict[str, int]:
        """Name and size in bytes of every file in the folder, empty if there is no such folder.

        Raises:
            UserError: the storage does not answer.
        """
        return {name: int(entry["size"] or 0) for name, entry in self._entries().items() if entry["type"] == "file"}

    def size(self, name: str) -> int | None:
        """Size in bytes of one file, None if there is none; errors as `sizes`. Nothing is listed for it."""
        try:
            entry = self._request("info", name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(entry["size"] or 0) if entry["type"] == "file" else None

    def names(self) -> list[str]:
        """Names of all files and folders in the folder, empty if there is no such folder; errors as `sizes`."""
        return sorted(self._entries())

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Bytes `start` to `stop` of a file; by default the whole file.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: the storage does not answer.
        """
        return self._request("cat_file", name, start=start, end=stop)

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically: no reader ever sees a part of it.

        Raises:
            UserError: the storage does not accept the file.
        """
        if self.local is not None:
            write_local(self.local / name, data)
            return
        # An upload is a single request of any size, so its deadline allows for one MiB per second.
        self._request("pipe_file", name, data, extra_seconds=len(data) / 2**20)

    def remove(self, name: str) -> None:
        """Remove a file; a missing file is not an error."""
        with suppress(FileNotFoundError):
            self._request("rm_file", name)

    def remove_written(self, names: Sequence[str]) -> None:
        """Remove files of these names, and orphaned parts of them that a killed `write` left.

        Nothing else is touched, and nothing at all if the folder is a symbolic link: its target may not be the
        caller's.

        Args:
            names: names of files that the caller wrote; the last one, which is removed last, should be the most
                important.
        """
        if self.local is not None and self.local.is_symlink():
            return
        self.remove_parts(names)
        sizes = self.sizes()
        *others, last = names
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(self.remove, [name for name in others if name in sizes]))
        if last in sizes:
            self.remove(last)

    def remove_parts(self, names: Collection[str]) -> None:
        """Remove orphaned parts of files of these names that a killed `write` left; errors as `sizes`."""
        wanted = set(names)
        for name in self.sizes():
            match = _PART.fullmatch(name)
            if match is not None and match[1] in wanted:
                self.remove(name)

    def remove_if_empty(self) -> None:
        """Remove a folder of this machine if it is empty and not a symbolic link; buckets have no folders."""
        if self.local is not None and not self.local.is_symlink():
            # rmdir fails if the folder is missing or not empty.
            with suppress(OSError):
                self.local.rmdir()

    def _entries(self) -> dict[str, dict[str, Any]]:
        """What the filesystem says of each file and folder in the folder, by name."""
        try:
            entries = self._request("ls", "", detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        path = open_filesystem(self.url)[1]
        # If the place is a file, it is listed as if it were inside itself.
        return {name: entry for entry in entries if (name := name_below(path, entry)) is not None}

    def _request(self, method: str, name: str, *args: Any, extra_seconds: float = 0.0, **options: Any) -> Any:
        filesystem, path = open_filesystem(self.url)
        path = f"{path}/{name}" if name else path
        for pause in (*RETRY_PAUSES, None):
            try:
                if isinstance(filesystem, AsyncFileSystem):
                    # The deadline cancels the request itself, not only the wait for it.
                    return sync(
                        filesystem.loop,
                        getattr(filesystem, "_" + method),
                        path,
                        *args,
                        timeout=REQUEST_DEADLINE + extra_seconds,
                        **options,
                    )
                return getattr(filesystem, method)(path, *args, **options)
            except _FINAL as error:
                if isinstance(error, FileNotFoundError | NotADirectoryError):
                    raise
                raise self._refused(name, error) from error
            except Exception as error:
                if pause is None:
                    raise self._refused(name, error) from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _refused(self, name: str, error: Exception) -> UserError:
        return UserError(
            f"storage {self.url_of(name)}",
            got=_describe(error),
            expected="the file's bytes",
            remedy="check the address, the network, the disk and the credentials",
        )


def name_below(folder: str, entry: Mapping[str, Any]) -> str | None:
    """Name of an entry of a folder's listing; None for the folder itself, or a file in its place."""
    head, _, name = str(entry["name"]).rstrip("/").rpartition("/")
    return name if name and (head or "/") == folder else None


def write_local(path: Path, data: bytes) -> None:
    """Write a local file atomically: write it under another name, then rename it.

    Raises:
        UserError: the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise UserError(
            f"writing {path}",
            got=_describe(error),
            expected="a folder that can be written, with room",
            remedy="choose another folder or make room",
        ) from error


def _describe(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        # Its name and text say no more, whichever library raised it.
        return NO_ANSWER
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
