"""Starts the process that works, ends it where a part takes far too long, and starts it again for those that remain."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.accelerator.parts import GRACE_SECONDS, UNUSABLE, Clock
from benchmarks.accelerator.record import append, read
from benchmarks.accelerator.report import write_report

WORKER = [sys.executable, "-m", "benchmarks.accelerator.worker"]
_START_SECONDS = 180.0
"""Until its first part a process imports torch and begins to use the GPU."""
_POLL_SECONDS = 0.2
_MOST_PROCESSES = 4
"""That a part may use up."""
_END_SECONDS = 10.0
"""A process that was asked to end is killed after so long."""


def supervise(folder: Path, parts: list[str], device: str, clock: Clock, limit: Clock) -> bool:
    """Do the parts in order; whether some failed.

    Args:
        folder: of the results; a report is written to it after every part.
        parts: names.
        device: cuda or cpu.
        clock: which the parts share.
        limit: after which whatever still works is ended.
    """
    remaining, used = list(parts), Counter[str]()
    while remaining and clock.left():
        command = [*WORKER, "--out", str(folder), "--device", device]
        command += ["--parts", ",".join(remaining), "--until", str(clock.until)]
        # A session of its own: ended with whatever compiles for it.
        process = subprocess.Popen(command, start_new_session=True)
        try:
            reason = _watch(process, folder, remaining, limit)
        finally:
            _end(process)
        first = next((name for name in remaining if _is_running(folder, name)), "")
        used[first] += 1
        if process.returncode == UNUSABLE and not reason and used[first] < _MOST_PROCESSES:
            remaining = remaining[remaining.index(first) :]
            continue
        remaining = _after(folder, remaining, process.returncode or 0, reason)
    for name in remaining:
        append(folder, name, "begin", until=clock.until)
        append(folder, name, "end", status="skipped", message="no time left", seconds=0.0)
    return any(part.status in ("failed", "out of time") for part in read(folder).values())


def _watch(process: subprocess.Popen[bytes], folder: Path, parts: list[str], limit: Clock) -> str:
    """Wait for a process; why it is to be ended, or nothing if it has ended."""
    started, reported = time.monotonic(), 0
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        found = read(folder)
        ended = [name for name in parts if name in found and found[name].status != "running"]
        if len(ended) > reported:
            # While the next part works: drawing takes a moment, and the last report has the pictures.
            reported = len(ended)
            write_report(folder, with_pictures=False)
        if len(ended) == len(parts):
            # Libraries may hang where they are to end.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            return ""
        if not limit.left():
            return "the time of the run is over"
        running = [part for name, part in found.items() if name in parts and part.status == "running"]
        if running and time.monotonic() > running[0].until + GRACE_SECONDS:
            return f"its time was over {GRACE_SECONDS:.0f} s ago"
        if not running and not ended and time.monotonic() > started + _START_SECONDS:
            return f"its process did not begin in {_START_SECONDS:.0f} s"
    return ""


def _after(folder: Path, parts: list[str], status: int, reason: str) -> list[str]:
    """The parts that are still to be done, after the one is recorded in which the process has ended, if it was one."""
    found = read(folder)
    left = [name for name in parts if name not in found or found[name].status == "running"]
    has_begun = bool(left) and left[0] in found
    # A process that ended of itself after a failed part has recorded it.
    if left and (has_begun or reason or left == parts):
        if not has_begun:
            append(folder, left[0], "begin", until=time.monotonic())
        message = reason or _why(status)
        kind = "out of time" if reason else "failed"
        append(folder, left[0], "end", status=kind, message=message, seconds=0.0)
        print(f"  {kind}: {message}", flush=True)
        return left[1:]
    return left


def _is_running(folder: Path, name: str) -> bool:
    found = read(folder)
    return name in found and found[name].status == "running"


def _why(status: int) -> str:
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    if status == UNUSABLE:
        return f"{_MOST_PROCESSES} processes could not use the device any more; see what failed"
    return f"its process ended with status {status}; its last words are above"


def _end(process: subprocess.Popen[bytes]) -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
