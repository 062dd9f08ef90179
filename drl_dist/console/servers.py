"""The record of the servers that ``python -m drl_dist up`` has started, and whether they still run."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from drl_dist.common.errors import UserError
from drl_dist.localhost import LocalServer, processes

RECORD = "servers.json"
MLFLOW, RAY = "MLflow server", "Ray head"


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that was started."""

    name: str
    """`MLFLOW` or `RAY`."""
    pid: int
    started: int
    """Start time of the process in clock ticks since boot; with its id and the boot it is the same process or none."""
    boot: str
    since: float
    """When it was started, in seconds since 1970."""
    address: str
    """Of its page."""
    log: str
    """File of its output."""
    scratch: str | None = None
    """Folder that goes with it."""
    environment: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    """With which clients connect; the Ray head's token is in it."""

    @property
    def process(self) -> processes.Process:
        """Its process, if it still runs."""
        return processes.Process(self.pid, 0, self.pid, self.started)

    @property
    def is_alive(self) -> bool:
        """Whether the process that was started still runs."""
        return self.boot == processes.boot_id() and bool(processes.running([self.process]))

    @classmethod
    def of(cls, server: LocalServer, *, address: str, environment: dict[str, str], scratch: Path | None) -> Running:
        """A server that has just been started."""
        process = processes.find(server.pid)
        if process is None:
            raise UserError(
                server.name,
                got="a process that ended at once",
                expected="a server that runs",
                remedy=f"look at {server.log}",
            )
        return cls(
            name=server.name,
            pid=process.pid,
            started=process.started,
            boot=processes.boot_id(),
            since=time.time(),
            address=address,
            log=str(server.log),
            scratch=None if scratch is None else str(scratch),
            environment=environment,
        )

    def end(self) -> None:
        """End the process with all that it started; nothing where it has ended and left nothing behind."""
        if self.boot == processes.boot_id():
            processes.end_tree(self.process)


def read_servers(folder: Path) -> dict[str, Running]:
    """The servers that were started for a folder, by name; none if there is no record.

    Raises:
        UserError: the record is damaged, or cannot be read.
    """
    path = folder / RECORD
    try:
        entries = json.loads(path.read_bytes())["servers"]
        return {entry["name"]: Running(**entry) for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f"record {path}",
            got=f"{type(error).__name__}: {error}",
            expected="what `python -m drl_dist up` writes",
            remedy="choose another --folder, or remove the file once no server of it runs",
        ) from error


def write_servers(folder: Path, servers: dict[str, Running]) -> None:
    """Record the servers of a folder, for its owner alone: the Ray head's token is among it. None removes the record.

    Raises:
        UserError: the folder cannot be written.
    """
    path = folder / RECORD
    try:
        if not servers:
            path.unlink(missing_ok=True)
            return
        text = json.dumps({"servers": [asdict(server) for server in servers.values()]}, indent=2) + "\n"
        draft = path.with_name(f".{RECORD}.{os.getpid()}.part")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        raise unusable(folder, error) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against another ``up`` or ``down``; made if need be.

    Raises:
        UserError: another one holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as error:
        raise unusable(folder, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"folder {folder}",
                got="another `python -m drl_dist up` or `python -m drl_dist down` at work",
                expected="one at a time",
                remedy="wait until it has ended",
            ) from error
        yield
    finally:
        os.close(descriptor)


def unusable(folder: Path, error: OSError) -> UserError:
    """For a folder that cannot be written."""
    return UserError(
        f"folder {folder}",
        got=error.strerror or str(error),
        expected="a folder that can be written",
        remedy="choose another --folder",
    )
