"""Killing processes of jobs and timing their recovery, for `benchmarks.reliability`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drl_dist.checkpoints.storage import newest_checkpoint
from drl_dist.localhost import RayHead, processes

LONGEST_WAIT = 180.0
"""Seconds within which a job must recover from a fault."""
CONTROLLER_SECONDS = 1.0
"""Seconds within which Ray's controller reads its workers' reports."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault that was injected into a job."""

    kind: str
    """``worker`` or ``driver``, the process that was killed."""
    time: float
    """When it was killed, in seconds since 1970."""
    recovery_seconds: float
    """Seconds until training began a step again."""


@dataclass(kw_only=True)
class Command:
    """A job as a process of its own, which can be started again with the same arguments."""

    words: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Run the command; its output is appended to the log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.words], env=dict(self.environment), stdout=log, stderr=log
            )

    def is_running(self) -> bool:
        """Whether the process is running."""
        assert self.process is not None
        return self.process.poll() is None

    def wait(self, seconds: float) -> None:
        """Wait for the process to end.

        Raises:
            RuntimeError: it ended with another status than 0.
        """
        assert self.process is not None
        status = self.process.wait(seconds)
        if status:
            raise RuntimeError(f"{' '.join(self.words)} ended with status {status}; see {self.log}")

    def kill(self) -> None:
        """Send SIGKILL to the driver only; the cluster ends the workers that it had started."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


def titled(head: RayHead, title: str) -> list[int]:
    """Ids of a Ray head's processes whose title begins with `title`."""
    found: list[int] = []
    for process in processes.tree(head.pid):
        try:
            line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if line.startswith(title.encode()):
            found.append(process.pid)
    return found


def train_under_kills(
    head: RayHead,
    command: Command,
    audit_log: Path,
    chooser: random.Random,
    kinds: Sequence[str],
    pause: Callable[[], float],
    run_url: str,
) -> list[Fault]:
    """Run a training job to its end and inject the faults in `kinds`, each `pause` seconds after training has resumed.

    Before every third fault it waits for a further checkpoint of the run in `run_url`: a job without progress gives up.

    Returns:
        the faults; fewer than in `kinds` if the job ended before.
    """
    faults: list[Fault] = []
    command.start()
    resumed = _begun_after(audit_log, time.time(), command)
    known = 0
    for number, kind in enumerate(kinds):
        if resumed is None:
            break
        if number % 3 == 2:
            known = _further_checkpoint(run_url, known, command)
        time.sleep(max(0.0, resumed + pause() - time.time()))
        victims = titled(head, "ray::RayTrainWorker") if kind == "worker" else []
        if not command.is_running() or (kind == "worker" and not victims):
            break
        killed = time.time()
        if kind == "worker":
            os.kill(chooser.choice(victims), signal.SIGKILL)
        else:
            command.kill()
            command.start()
        resumed = _begun_after(audit_log, killed + 0.2, command)
        if resumed is not None:
            faults.append(Fault(kind=kind, time=killed, recovery_seconds=resumed - killed))
    command.wait(1800)
    return faults


def _further_checkpoint(run_url: str, known: int, command: Command) -> int:
    """The step of the newest checkpoint, once it is beyond the `known` one and reported to Ray's controller."""
    while command.is_running():
        newest = newest_checkpoint(run_url)
        if newest is not None and newest.step > known:
            time.sleep(CONTROLLER_SECONDS)
            return newest.step
        time.sleep(0.1)
    return known


def _begun_after(audit_log: Path, moment: float, command: Command) -> float | None:
    """Time at which workers that started after `moment` first began a step; None if the job ended instead."""
    deadline = time.time() + LONGEST_WAIT
    while time.time() < deadline:
        for path in audit_log.glob("*.jsonl"):
            # The name ends with the time at which the file was created, in nanoseconds.
            if int(path.stem.rsplit("-", 1)[1]) / 1e9 > moment:
                first, newline, _ = path.read_text().partition("\n")
                if newline:
                    return json.loads(first)["time"]
        if not command.is_running():
            return None
        time.sleep(0.02)
    raise TimeoutError(f"no step within {LONGEST_WAIT:.0f} s of a fault; see {command.log}")


def sample_under_kills(head: RayHead, command: Command, chooser: random.Random, kills: int) -> int:
    """Run a sampling job to its end, killing up to `kills` of its workers at random; returns the number killed."""
    command.start()
    done = 0
    while done < kills and command.is_running():
        victims = titled(head, "ray::SampleWorker.make")
        if not victims:
            time.sleep(0.05)
            continue
        time.sleep(chooser.uniform(0.2, 2.0))
        victims = titled(head, "ray::SampleWorker.make")
        if victims:
            os.kill(chooser.choice(victims), signal.SIGKILL)
            done += 1
            time.sleep(1.0)
    command.wait(1800)
    return done
