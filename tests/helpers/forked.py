"""The fork server of a test session, and what it hides from who looks for a process's family."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from drl_dist.localhost import processes

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "DRL_FORK_SERVER"
"""Variable that names the server's folder to this session's other processes."""
START_SECONDS = 600


def real_python() -> str:
    """The interpreter itself, for tests of what a fresh process imports or reads from its environment."""
    return str(Path(sys.prefix) / "bin" / "python")


class ForkServer:
    """The server, and the `python` that asks it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Addresses of sockets end at 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="drl-fork-", dir="/tmp"))
        self.python = self.folder / "bin" / "python"
        # Each process has its own.
        self._environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns before it is ready: until then processes wait, or are fresh ones."""
        self.python.parent.mkdir()
        text = (Path(__file__).parent / "fork_client.py").read_text()
        text = text.replace("@REAL@", real_python()).replace("@ADDRESS@", str(self.folder / "socket"))
        self.python.write_text(f"#!{real_python()} -IS\n{text}")
        self.python.chmod(0o755)
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [real_python(), "-m", "tests.helpers.fork_server", self.folder / "socket", self.python],
                env=self._environment,
                cwd=ROOT,
                # It ends with this process, however that ends.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not (self.folder / "socket").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the fork server did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends it, and everything that it forked."""
        if self._process is not None:
            self._process.communicate()
            shutil.rmtree(self.folder)


class Forked(NamedTuple):
    """A forked process, and the client that stands for it."""

    client: int
    child: int
    is_running: bool


def forked_processes() -> list[Forked]:
    """All that the fork server has made."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.connect(str(Path(folder) / "socket"))
        server.sendall(bytes(8))
        answer = b"".join(iter(lambda: server.recv(1 << 16), b""))
    numbers = [int(number) for number in answer.split()]
    return [Forked(client, child, bool(runs)) for client, child, runs in zip(*[iter(numbers)] * 3, strict=True)]


def real_process(client: int) -> int:
    """The process that does the work of one that was started: itself, unless it is forked."""
    return next((one.child for one in forked_processes() if one.is_running and one.client == client), client)


def kill(process: subprocess.Popen[Any]) -> None:
    """SIGKILL; nothing of the process is left at the return.

    Killing the client alone leaves the forked process to the server, which may come to it later, after the next start
    of a test has begun.
    """
    os.kill(real_process(process.pid), signal.SIGKILL)
    # A client ends as the forked process did, once that has been waited for.
    process.wait()


def count_forked_processes_below_their_clients() -> None:
    """Let `drl_dist.localhost.processes` find a forked process, and its session even after its end, where a fresh one
    would be in the tree."""
    listed = processes._processes  # pyright: ignore[reportPrivateUsage]

    def in_their_places() -> list[processes.Process]:
        # Asked after they are listed, so that every forked one among them is known.
        everyone = listed()
        known = forked_processes()
        parents = {one.child: one.client for one in known if one.is_running}
        sessions = {one.child: one.client for one in known}
        return [
            process._replace(
                parent=parents.get(process.pid, process.parent), session=sessions.get(process.session, process.session)
            )
            for process in everyone
        ]

    processes._processes = in_their_places  # pyright: ignore[reportPrivateUsage]
