"""Files on this machine, on gs:// and on s3://, behind deadlines.

gcsfs waits up to five minutes on a stalled read, and longer on an address that does not answer. Here every request has
its own deadline and a few retries, and an address can be checked once, within half a minute, before work starts.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.spec import AbstractFileSystem

from drl_dist.errors import UserError
from drl_dist.proxies import spare_loopback

# Emulators of storage run on this machine.
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
"""Environment variables that say where storage is and how to speak to it; none of them is a secret."""
SCHEMES = ("file", "gs", "gcs", "s3", "s3a")
REACH_DEADLINE = 25.0
"""Seconds in which an address must answer at all."""
REQUEST_DEADLINE = 30.0
"""Seconds after which one request counts as stalled."""
REQUEST_BYTES = 8 * 2**20
"""Bytes of one request, so that a slow line is not taken for a stalled one."""
RETRY_PAUSES = (1.0, 4.0)
"""Seconds before the second and the third try."""

T = TypeVar("T")
# What another try cannot mend.
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError, TypeError)


def open_filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URL (file://, gs://, s3:// or a plain path) and the path in it.

    Raises:
        UserError: the scheme is another one.
    """
    filesystem, path = fsspec.core.url_to_fs(url, **_options(url))
    return filesystem, str(path).rstrip("/") or "/"


def _options(url: str) -> dict[str, Any]:
    """What the URL's kind of filesystem is opened with."""
    scheme = url.split("://", 1)[0] if "://" in url else "file"
    if scheme not in SCHEMES or not url:
        raise UserError(
            "storage URL",
            got=repr(url),
            expected="a path, file://, gs:// or s3://",
            remedy="write the URL with one of these schemes",
        )
    if scheme in ("gs", "gcs"):
        # Its log repeats every error that it also raises, with a traceback.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        # With md5 it compares what it sent with what was stored, and sends it again.
        options = {"use_listings_cache": False, "consistency": "md5"}
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            # Emulators do not speak the gRPC that gcsfs would probe for up to a minute; read when gcsfs is imported.
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
        TimeoutError: it took longer than `seconds`; the thread is left to end by itself.
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
    """Return if the bucket of an object-store URL answers; local paths always do.

    Raises:
        UserError: it does not answer within half a minute, or it does not exist.
    """
    if "://" not in url or url.startswith("file://"):
        open_filesystem(url)
        return
    bucket = url.split("://", 1)[1].split("/", 1)[0]

    # Importing a client can take many seconds on a busy machine: not the storage's fault.
    _options(url)
    fsspec.get_filesystem_class(url.split("://", 1)[0])

    def ask() -> None:
        filesystem, _ = open_filesystem(url)
        try:
            filesystem.info(bucket)
        except PermissionError:
            return  # A bucket that may be used but not described.
        except FileNotFoundError:
            raise
        except OSError as error:
            # gcsfs has no class of its own for this.
            if not str(error).startswith("Forbidden"):
                raise

    try:
        within(REACH_DEADLINE, ask)
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
        raise UserError(
            f"storage {url}",
            got=_describe(error),
            expected=f"an answer within {REACH_DEADLINE:.0f} s",
            remedy="check the address, the network and the credentials",
        ) from error


@dataclass(frozen=True)
class Folder:
    """The files directly in one folder of any filesystem.

    Holds only the URL, so that it can be sent to another process; connections are opened there at the first use.
    """

    url: str

    @property
    def local(self) -> Path | None:
        """The folder's path if it lies on this machine's filesystem."""
        if "://" in self.url and not self.url.startswith("file://"):
            return None
        return Path(open_filesystem(self.url)[1])

    def url_of(self, name: str) -> str:
        """URL of one file."""
        return f"{self.url.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """Name and size in bytes of every file in the folder, empty if there is no such folder.

        Raises:
            UserError: the storage does not answer.
        """
        try:
            entries = self._ask("ls", "", detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {
            entry["name"].rstrip("/").rsplit("/", 1)[-1]: int(entry["size"] or 0)
            for entry in entries
            if entry["type"] == "file"
        }

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Bytes `start` to `stop` of a file, all of it by default.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: the storage does not answer.
        """
        return self._ask("cat_file", name, start=start, end=stop)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole: nobody ever sees a part of it.

        Raises:
            UserError: the storage does not take it.
        """
        if self.local is not None:
            write_local(self.local / name, data)
            return
        # An upload is one request however large: allow for a line of one MiB a second.
        self._ask("pipe_file", name, data, extra_seconds=len(data) / 2**20)

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        with suppress(FileNotFoundError):
            self._ask("rm_file", name)

    def _ask(self, method: str, name: str, *args: Any, extra_seconds: float = 0.0, **options: Any) -> Any:
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


def write_local(path: Path, data: bytes) -> None:
    """Write a local file whole, by renaming a finished one into place.

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
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
