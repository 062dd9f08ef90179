"""``jobs/serve.py`` as a process on a Ray head, and what can be seen of it from outside."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from drl_dist.localhost import LocalServer, RayHead, processes
from drl_dist.localhost.server import HOST, fetch, free_ports

ROOT = Path(__file__).resolve().parents[2]
TITLES = {
    "front": "ray::ServeReplica:drl_dist:front",
    "replica": "ray::ServeReplica:drl_dist:model",
    "proxy": "ray::ProxyActor",
}
"""Beginnings of what Ray calls the processes of a server."""
_MIB = 1024
"""In the kibibytes of /proc."""


class ServeJob(LocalServer):
    """``jobs/serve.py`` of a model, without a token.

    Args:
        head: the cluster that it joins.
        model: folder of the model.
        log: gets its output.
        words: more options.
    """

    def __init__(self, head: RayHead, model: Path, log: Path, words: Sequence[str] = ()) -> None:
        super().__init__("server", log, 180)
        self.head, self.model, self.words = head, model, list(words)
        self.port = free_ports(1)[0]

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        return [sys.executable, "jobs/serve.py", f"--model={self.model}", f"--port={self.port}", *self.words]

    @property
    def working_directory(self) -> Path:
        return ROOT

    def server_environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return dict(os.environ) | self.head.environment() | {"PYTHONPATH": path}

    def is_ready(self) -> bool:
        # Its own check of an answer comes before this line.
        return "\nAPI: " in self.log.read_text(errors="replace") and bool(self.pids("replica"))

    def interrupt(self, signum: signal.Signals, seconds: float = 60) -> int:
        """Send a signal and wait for its end; the exit status.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        assert self._process is not None
        self._process.send_signal(signum)
        return self._process.wait(seconds)

    def stop(self) -> None:
        """Stop it as a user does, which gives Ray Serve the time to end its own processes."""
        if self._process is not None and self._process.poll() is None:
            self.interrupt(signal.SIGTERM)
        super().stop()

    def pids(self, role: str) -> list[int]:
        """Ids of the processes of a role, one of `TITLES`."""
        return [
            process.pid
            for process in processes.tree(self.head.pid)
            if _read(f"/proc/{process.pid}/cmdline").startswith(TITLES[role])
        ]

    def kill(self, role: str) -> None:
        """End the first process of a role with SIGKILL."""
        os.kill(self.pids(role)[0], signal.SIGKILL)

    def memory(self) -> dict[str, float]:
        """MiB that the processes of each role hold."""
        return {role: sum(_status(pid, "VmRSS") for pid in self.pids(role)) for role in TITLES}

    def peak_memory(self) -> dict[str, float]:
        """MiB that the processes of each role held at most since `forget_peak_memory`."""
        return {role: sum(_status(pid, "VmHWM") for pid in self.pids(role)) for role in TITLES}

    def forget_peak_memory(self) -> None:
        """Measure peaks from now on."""
        for role in TITLES:
            for pid in self.pids(role):
                # See proc(5).
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def metric(self, name: str, tag: str = "") -> float | None:
        """The sum of a metric over its tags, as Prometheus would read it now; None where nobody has exported it.

        Args:
            name: with ``ray_`` before it.
            tag: that is asked for, such as ``outcome="done"``.
        """
        found = [
            float(line.rpartition(" ")[2])
            for line in fetch(self.head.metrics_address).decode().splitlines()
            if line.partition("{")[0] == name and tag in line
        ]
        return sum(found) if found else None

    def visits(self, outcome: str) -> float:
        """How many visits the replicas have told Prometheus of that ended so."""
        return self.metric("ray_drl_serve_visits_total", f'outcome="{outcome}"') or 0


def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until the condition holds.

    Raises:
        TimeoutError: it did not in time.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.05)
    return time.monotonic() - began


def _status(pid: int, field: str) -> float:
    lines = _read(f"/proc/{pid}/status").splitlines()
    return sum(int(line.split()[1]) / _MIB for line in lines if line.startswith(f"{field}:"))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        # It has ended meanwhile.
        return ""
