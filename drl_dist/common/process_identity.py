"""Which process does something, written down so that another one can see later whether it still runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process, now and later."""

    host: str
    """Name of its machine, for messages."""
    space: str
    """The start of its machine, and its PID namespace: within it, an id and a start time mean one process."""
    pid: int
    started: int
    """Start time in clock ticks since boot: it distinguishes the process from a later one of the same id."""

    @property
    def is_alive(self) -> bool | None:
        """Whether it still runs; None if it ran elsewhere, and so cannot be seen from here."""
        if self.space != _space():
            return None
        return _started(self.pid) == self.started


def this_process() -> ProcessIdentity | None:
    """This process; None where the system does not tell, as it does on Linux."""
    space, started = _space(), _started(os.getpid())
    if not space or started is None:
        return None
    return ProcessIdentity(host=socket.gethostname(), space=space, pid=os.getpid(), started=started)


def _space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process started; None if it has ended."""
    try:
        # The name, in brackets, may contain spaces and brackets; the numbers follow the last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
