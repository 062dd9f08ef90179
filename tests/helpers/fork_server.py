"""Forks processes that have the large libraries imported already: ``python -m tests.helpers.fork_server ADDRESS``.

The tests start some hundred Python processes: commands, Ray's workers, MLflow servers. Each would spend four to nine
seconds of processor time on imports before it does anything. This process imports the libraries once, the project's own
packages not among them, and forks a child for each request of `fork_client`. A child runs its script from the start
with a `__main__`, arguments, environment, folder, open files and process group of its own; it is a process like any
other from then on.

What a library read from the environment while it was imported must be the same for the child. Names that were read are
recorded; a request in which one of them has another value is refused, and its client starts a fresh interpreter.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import io
import os
import runpy
import select
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tests.helpers.fork_imports import (
    FLAGS,
    NATIVE,
    PER_PROCESS,
    PORTS,
    READ_THROUGH,
    SET_BEFORE,
    draws_of_two_children,
    flag_addresses,
    preload,
    set_flag,
)


class Request:
    """One process that is asked for."""

    def __init__(self, body: bytes, descriptors: list[int]) -> None:
        self.received = descriptors
        first, numbers, ignored, folder, count, *rest = body.split(b"\0")
        self.client, self.leads_group, self.leads_session, self.umask = map(int, first.split())
        self.numbers = [int(number) for number in numbers.split()]
        self.ignored = [int(number) for number in ignored.split()]
        self.folder = folder
        self.words = [os.fsdecode(word) for word in rest[: int(count)]]
        pairs = (entry.partition(b"=") for entry in rest[int(count) :])
        self.environment = {name: value for name, _, value in pairs if name}

    def close(self) -> None:
        """Leave the open files to the child."""
        for descriptor in self.received:
            os.close(descriptor)


class Server:
    """Takes requests until it is ended."""

    def __init__(self, address: str, log: Callable[[str], None]) -> None:
        self._log = log
        os.environ.update(SET_BEFORE)
        self._began = dict(os.environb)
        # Without what `-m` puts there.
        self.path = sys.path[1:]
        self._asked = {os.fsencode(name) for name in preload(log)}
        self._flags = flag_addresses()
        # By libraries, which would do it again.
        self._set = {name: value for name, value in os.environb.items() if self._began.get(name) != value}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(address)
        self._listener.listen(128)
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)
        # Nothing comes from there but the end of who started this process.
        self._poll.register(0, select.POLLIN | select.POLLHUP)
        self._children: dict[int, tuple[int, socket.socket, int]] = {}
        """Process id, its client's connection and id, by the file that tells of its end."""
        self._forked: dict[int, int] = {}
        """The client's process id by the child's, of all there ever were."""
        self._clients: dict[int, int] = {}
        """The file that tells of the child's end, by the client's connection."""

    def serve(self) -> Callable[[], object]:
        """Runs for ever in this process; returns in each child, with what it shall do."""
        threads = list(Path("/proc/self/task").iterdir())
        self._log(
            f"ready; open files: {[str(path.readlink()) for path in Path('/proc/self/fd').iterdir() if path.exists()]}"
        )
        self._log(f"read by imports: {sorted(self._asked)}")
        self._log(f"set by imports: {self._set}")
        if len(threads) != 1 or threading.active_count() != 1:
            raise RuntimeError(f"cannot fork: {len(threads)} threads, {threading.enumerate()}")
        one, other = draws_of_two_children()
        if one == other:
            raise RuntimeError("cannot fork: Ray draws the same random numbers in all processes")
        gc.collect()
        gc.freeze()
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._listener.fileno():
                    work = self._accept()
                    if work is not None:
                        return work
                elif descriptor == 0:
                    for child, _, _ in self._children.values():
                        os.kill(child, signal.SIGKILL)
                    os._exit(0)
                elif descriptor in self._children:
                    self._ended(descriptor)
                elif descriptor in self._clients:
                    self._left(descriptor)

    def _accept(self) -> Callable[[], object] | None:
        connection, _ = self._listener.accept()
        connection.settimeout(30)
        try:
            request = _receive(connection)
        except (OSError, ValueError) as error:
            self._log(f"no request: {error!r}")
            connection.close()
            return None
        if request is None:
            running = {child for child, _, _ in self._children.values()}
            lines = [f"{client} {child} {child in running:d}" for child, client in self._forked.items()]
            connection.sendall(" ".join(lines).encode())
            connection.close()
            return None
        if differing := self._refusal(request):
            self._log(f"fresh for another {differing}: {' '.join(request.words)[:200]}")
            connection.sendall(bytes(4))
            connection.close()
            request.close()
            return None
        # The child waits until its client knows it.
        waits, goes = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(goes)
            connection.close()
            return self._become(request, waits)
        os.close(waits)
        request.close()
        try:
            connection.sendall(child.to_bytes(4, sys.byteorder))
        except OSError:
            os.kill(child, signal.SIGKILL)
        os.close(goes)
        self._forked[child] = request.client
        descriptor = os.pidfd_open(child)
        self._children[descriptor] = (child, connection, request.client)
        self._clients[connection.fileno()] = descriptor
        self._poll.register(descriptor, select.POLLIN)
        self._poll.register(connection, select.POLLIN | select.POLLHUP)
        return None

    def _refusal(self, request: Request) -> str:
        """Names that have another value than they had while libraries were imported."""
        differing: list[str] = []
        names = request.environment.keys() | self._began.keys()
        for name in sorted(names):
            # What this process began with, or what imports made of it.
            if request.environment.get(name) in (self._began.get(name), self._set.get(name, self._began.get(name))):
                continue
            text = os.fsdecode(name)
            if name in FLAGS:
                if name not in self._flags or len(request.environment[name]) > len(FLAGS[name]):
                    differing.append(text)
                continue
            if text in SET_BEFORE and name not in request.environment:
                continue
            is_native = text.startswith(NATIVE + READ_THROUGH) and text not in PER_PROCESS
            is_python = text.startswith("PYTHON") and text not in PER_PROCESS
            if is_native or is_python or name in self._asked:
                differing.append(text)
        return ", ".join(differing)

    def _ended(self, descriptor: int) -> None:
        child, connection, _ = self._children.pop(descriptor)
        _, status = os.waitpid(child, 0)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        if self._clients.pop(connection.fileno(), None) is not None:
            self._poll.unregister(connection)
            try:
                connection.sendall(status.to_bytes(4, sys.byteorder))
            except OSError as error:
                self._log(f"nobody to tell of the end of {child}: {error}")
            connection.close()

    def _left(self, descriptor: int) -> None:
        """The client was killed: so is what it stood for."""
        child, connection, _ = self._children[self._clients.pop(descriptor)]
        self._poll.unregister(descriptor)
        connection.close()
        os.kill(child, signal.SIGKILL)

    def _become(self, request: Request, waits: int) -> Callable[[], object]:
        for descriptor, (_, connection, _) in self._children.items():
            os.close(descriptor)
            connection.close()
        self._listener.close()
        os.read(waits, 1)
        os.close(waits)
        if request.leads_session:
            os.setsid()
        else:
            os.setpgid(0, 0)
        _move_files(request.received, request.numbers)
        _set_signals(request.ignored)
        os.umask(request.umask)
        os.chdir(request.folder)
        os.environ.clear()
        os.environb.update(self._set | request.environment)
        for name, address in self._flags.items():
            set_flag(address, request.environment.get(name, b""))
        return lambda: run(request.words, self.path)


def _receive(connection: socket.socket) -> Request | None:
    """A request; None from who asks for the children that there are."""
    sizes = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(253 * sizes.itemsize))
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            sizes.frombytes(payload[: len(payload) - len(payload) % sizes.itemsize])
    length = int.from_bytes(data, sys.byteorder)
    if len(data) != 8:
        raise ValueError(f"{len(data)} bytes")
    body = bytearray()
    while len(body) < length:
        part = connection.recv(min(length - len(body), 1 << 20))
        if not part:
            raise ValueError("cut short")
        body += part
    if not body:
        return None
    return Request(bytes(body), list(sizes))


def _move_files(received: list[int], numbers: list[int]) -> None:
    """Give the received open files the numbers that they had, and close the server's own."""
    highest = max([*numbers, *received, 255]) + 1
    kept = [os.dup2(descriptor, highest + place, inheritable=False) for place, descriptor in enumerate(received)]
    os.closerange(0, highest)
    for descriptor, number in zip(kept, numbers, strict=True):
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)


def _set_signals(ignored: list[int]) -> None:
    for number in range(1, 32):
        if number in (signal.SIGKILL, signal.SIGSTOP):
            continue
        is_ignored = signal.getsignal(number) == signal.SIG_IGN
        if number in ignored:
            signal.signal(number, signal.SIG_IGN)
        elif is_ignored and number not in (signal.SIGPIPE, signal.SIGXFSZ):
            # The server's own, which whoever started it may have had ignored; Python ignores the other two.
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _open_streams(*, unbuffered: bool) -> None:
    def opened(number: int, mode: str, errors: str) -> io.TextIOWrapper | None:
        try:
            raw = io.FileIO(number, mode, closefd=False)
        except OSError:
            return None
        buffer = raw if unbuffered and mode == "w" else (io.BufferedWriter if mode == "w" else io.BufferedReader)(raw)
        is_line_buffered = number == 2 or (mode == "w" and raw.isatty())
        stream = io.TextIOWrapper(
            buffer,  # pyright: ignore[reportArgumentType]
            encoding="utf-8",
            errors=errors,
            line_buffering=is_line_buffered,
            write_through=unbuffered and mode == "w",
        )
        stream.mode = mode  # pyright: ignore[reportAttributeAccessIssue]
        return stream

    sys.stdin = sys.__stdin__ = opened(0, "r", "strict")  # pyright: ignore
    sys.stdout = sys.__stdout__ = opened(1, "w", "strict")  # pyright: ignore
    sys.stderr = sys.__stderr__ = opened(2, "w", "backslashreplace")  # pyright: ignore


def _renew() -> None:
    """Libraries' random numbers, and what they keep of the environment, are as different as in fresh processes."""
    import random

    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if tempfile := sys.modules.get("tempfile"):
        tempfile.tempdir = None
    if raylet := sys.modules.get("ray._raylet"):
        # Its native part reads the environment again.
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    for name, holders in PORTS.items():
        if name in os.environ:
            for holder in holders:
                if holder in sys.modules:
                    setattr(sys.modules[holder], name, int(os.environ[name]))


def run(words: list[str], path: list[str]) -> object:
    """What the interpreter does with its command line."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    if words[0] == "-u":
        unbuffered, words = True, words[1:]
    _open_streams(unbuffered=unbuffered)
    _renew()
    added = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    sys.path[:] = [*added, *path]
    sys.path_importer_cache.clear()
    if os.environ.get("COVERAGE_PROCESS_START") or os.environ.get("COVERAGE_PROCESS_CONFIG"):
        importlib.import_module("coverage").process_startup()
    kind, *arguments = words
    if kind == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv[:] = ["-m", *arguments[1:]]
        # It would run a second time beside the one that is imported.
        if not hasattr(sys.modules.get(arguments[0]), "__path__"):
            sys.modules.pop(arguments[0], None)
        return runpy._run_module_as_main(arguments[0])  # pyright: ignore
    if kind == "-c":
        sys.path.insert(0, "")
        sys.argv[:] = ["-c", *arguments[1:]]
        code = compile(arguments[0], "<string>", "exec")
    else:
        sys.path.insert(0, str(Path(kind).resolve().parent))
        sys.argv[:] = words
        main.__dict__.update(__file__=kind, __cached__=None)
        try:
            source = Path(kind).read_bytes()
        except OSError as error:
            print(f"{sys.executable}: can't open file {str(Path(kind).absolute())!r}: {error}", file=sys.stderr)
            sys.exit(2)
        code = compile(source, kind, "exec")
    # Frames of the server are no part of what the script may find below it.
    exec(code, main.__dict__)
    return None


def ended(work: Callable[[], object]) -> int:
    """The exit status of what was run, as the interpreter has it."""
    try:
        work()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        return -signal.SIGINT
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def end(status: int) -> NoReturn:
    """End as the interpreter does, but leave it to the system to clear some thousand modules away, which takes most of
    a second."""
    threading._shutdown()  # pyright: ignore
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            status = status or 120
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def main() -> Callable[[], object]:
    """The command; returns in each child."""
    address, sys.executable = sys.argv[1:]
    # No object of this process's own may hold an open file that a child would close a second time.
    return Server(address, lambda line: os.write(2, f"{line}\n".encode()) and None).serve()


if __name__ == "__main__":
    end(ended(main()))
