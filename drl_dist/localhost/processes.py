"""Process trees on Linux: found through /proc, and ended by process id."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """One process, with its start time to distinguish it from a later one with the same id."""

    pid: int
    parent: int
    session: int
    started: int
    """Start time in clock ticks since boot."""


def tree(root: int) -> list[Process]:
    """The process `root`, all its descendants, and all processes of its session with theirs."""
    everyone = _processes()
    found = {process.pid: process for process in everyone if root in (process.pid, process.session)}
    while grown := [process for process in everyone if process.parent in found and process.pid not in found]:
        found |= {process.pid: process for process in grown}
    return list(found.values())


def find(pid: int) -> Process | None:
    """The process of this id; None if there is none, or only a zombie."""
    return next((process for process in _processes() if process.pid == pid), None)


def tree_of(root: Process) -> list[Process]:
    """As `tree`, of a process that may have ended and whose id may be another's by now; then only its session's.

    The kernel gives no process an id that a session still has, so a session with the id of an ended leader is its own.
    """
    now = find(root.pid)
    if now is not None and now.started != root.started:
        return []
    return tree(root.pid)


def boot_id() -> str:
    """Identifies the time since the machine started, in which process ids and start times mean something."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def end_tree(root: Process, seconds: float = 10) -> None:
    """End a process and everything that it started: SIGTERM to it, then to the rest, and SIGKILL for what is left.

    Args:
        seconds: how long the process itself has to end.
    """
    members = tree_of(root)
    end([member for member in members if member.pid == root.pid], signal.SIGTERM)
    if not wait_until_gone([root], seconds):
        end([root], signal.SIGKILL)
    members = list({*members, *tree_of(root)})
    end(members, signal.SIGTERM)
    if not wait_until_gone(members, 3):
        end(members, signal.SIGKILL)
        wait_until_gone(members, 10)


def end(processes: list[Process], signum: signal.Signals) -> None:
    """Send a signal to the processes that still run; a process that has taken over an id gets none."""
    for process in running(processes):
        try:
            os.kill(process.pid, signum)
        except ProcessLookupError:
            continue


def running(processes: list[Process]) -> list[Process]:
    """The processes that still run; zombies do not count."""
    alive = {(process.pid, process.started) for process in _processes()}
    return [process for process in processes if (process.pid, process.started) in alive]


def wait_until_gone(processes: list[Process], seconds: float) -> bool:
    """Whether all processes ended within the time."""
    deadline = time.monotonic() + seconds
    while running(processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _processes() -> list[Process]:
    found: list[Process] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name, in brackets, may contain spaces and brackets; the numbers follow the last bracket.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent, session, started = fields[0], int(fields[1]), int(fields[3]), int(fields[19])
        if state not in "ZX":
            found.append(Process(int(entry.name), parent, session, started))
    return found
