"""Base class of local servers, which start with a deadline and stop with their process tree, and free ports."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from drl_dist.common.proxies import spare_loopback
from drl_dist.localhost import processes

HOST = "127.0.0.1"
# Below Linux's range for outgoing connections and above that of Ray's workers, so that a free port stays free.
PORTS = range(20_000, 32_000)


class StartError(RuntimeError):
    """A local server ended, or was not ready in time; the message holds the last lines of its log."""


def fetch(url: str, headers: Mapping[str, str] | None = None, seconds: float = 5) -> bytes:
    """The body of a response with status 200 from a server on this machine, without any proxy.

    Raises:
        OSError: the server does not answer, or with another status.
    """
    request = urllib.request.Request(url, headers=dict(headers or {}))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=seconds) as answer:
        if answer.status != 200:
            raise OSError(f"status {answer.status}")
        return answer.read()


def free_ports(count: int) -> list[int]:
    """Distinct ports of 127.0.0.1 that are free at present."""
    found: list[int] = []
    with ExitStack() as held:
        for port in random.SystemRandom().sample(PORTS, len(PORTS)):
            candidate = held.enter_context(socket.socket())
            try:
                candidate.bind((HOST, port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise StartError(f"no {count} free ports in {PORTS.start}-{PORTS.stop - 1}")


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, so that this program's servers are stopped."""

    def unwind(signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, unwind)


class LocalServer(ABC):
    """A server process on 127.0.0.1, as a context manager; it can be stopped and started again.

    Args:
        name: name of the server in progress lines and errors.
        log: file to which its output is appended.
        start_seconds: seconds within which it must be ready.
    """

    def __init__(self, name: str, log: Path, start_seconds: float) -> None:
        self.name, self.log, self.start_seconds = name, log, start_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """The command line."""

    @abstractmethod
    def server_environment(self) -> dict[str, str]:
        """The complete environment of the process."""

    @property
    def working_directory(self) -> Path | None:
        """Working directory of the server; None for that of this process."""
        return None

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers."""

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            StartError: it ended, or did not answer in time; no process is left running.
        """
        assert self._process is None, f"{self.name} is running already"
        environment = self.server_environment()
        # Processes that the server starts connect to addresses of this machine.
        spare_loopback(environment)
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(
                    self.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.working_directory,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise StartError(f"{self.name} could not be started: {error}") from error
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and every process that it started; does nothing if it is not running."""
        if self._process is None:
            return
        members = processes.tree(self._process.pid)
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not processes.wait_until_gone(members, 3):
            processes.end(members, signal.SIGKILL)
            processes.wait_until_gone(members, 10)
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        began = printed = time.monotonic()
        while not self.is_ready():
            now = time.monotonic()
            if process.poll() is not None:
                raise StartError(f"{self.name} ended with status {process.returncode}; its last lines:\n{self._tail()}")
            if now - began > self.start_seconds:
                raise StartError(
                    f"{self.name} was not ready after {self.start_seconds:.0f} s; its last lines:\n{self._tail()}"
                )
            if now - printed > 5:
                printed = now
                print(
                    f"{self.name}: starting, {now - began:.0f} s of at most {self.start_seconds:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(0.1)

    def _tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
