"""Object storage as it is on a bad day: an HTTP proxy before the emulator, which does what its rules say.

with FaultyProxy(gcs_emulator.host) as proxy:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.host)
    proxy.add("GET", "shard-3.tar", "error 503", times=2)
"""

from __future__ import annotations

import http.client
import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

import pytest

from drl_dist.data import filesystem
from tests.gcs import GcsEmulator

Fault = Literal[
    "error 503",  # answered at once, nothing done
    "reset",  # the connection breaks instead of an answer
    "short body",  # half of the bytes that the header promises
    "truncated",  # half of the bytes, and a header that agrees with them
    "flipped bit",  # one bit of the body is another one
    "stall",  # no byte of an answer until the client gives up or the proxy ends
    "slow",  # the request is passed on only after `seconds`
    "flipped upload",  # one bit of the request's body is another one
    "error 403",  # refused, as by a bucket that may not be written
]
"""What may become of a request."""


@dataclass
class Rule:
    """A fault for the first `times` requests of one kind, after `after` others."""

    method: str
    name: str
    """Part of the object's name; an upload's is looked for in its body too, where gcsfs has it."""
    fault: Fault
    times: int
    after: int = 0
    seconds: float = 0.0
    seen: int = 0
    """Requests that it was asked about."""

    @property
    def done(self) -> int:
        """Requests that it spoilt."""
        return max(0, min(self.seen - self.after, self.times))


@dataclass
class FaultyProxy:
    """Passes requests on to `upstream`, an address such as ``http://127.0.0.1:9023``, unless a rule says otherwise."""

    upstream: str
    rules: list[Rule] = field(default_factory=list[Rule])

    def add(
        self, method: str, name: str, fault: Fault, *, times: int = 1, after: int = 0, seconds: float = 0.0
    ) -> Rule:
        """A further rule; of several that fit a request the first one counts."""
        rule = Rule(method, name, fault, times, after, seconds)
        self.rules.append(rule)
        return rule

    @property
    def host(self) -> str:
        """The proxy's own address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._lock, self._ended = threading.Lock(), threading.Event()
        # The base class says something for every connection that breaks.
        server = type("Server", (http.server.ThreadingHTTPServer,), {"handle_error": lambda *_: None})
        self._server = server(("127.0.0.1", 0), type("Bound", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def rule_for(self, method: str, path: str, body: bytes) -> Rule | None:
        """The rule for a request, which counts it."""
        address = unquote(urlsplit(path).path)
        is_object = "/o/" in address or "/upload/" in address or method == "DELETE"
        if not is_object:
            return None
        with self._lock:
            for rule in self.rules:
                named = rule.name in address or ("/upload/" in address and f'{rule.name}"'.encode() in body[:1000])
                if rule.method == method and named:
                    rule.seen += 1
                    if rule.after < rule.seen <= rule.after + rule.times:
                        return rule
        return None

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than the proxy lives."""
        self._ended.wait(seconds)


@pytest.fixture
def proxy(gcs_emulator: GcsEmulator, gcs_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The emulator behind a proxy, through which this process reaches its bucket; deadlines and pauses are short."""
    monkeypatch.setattr(filesystem, "REQUEST_DEADLINE", 4.0)
    monkeypatch.setattr(filesystem, "RETRY_PAUSES", (0.05, 0.05))
    with FaultyProxy(gcs_emulator.host) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.host)
        yield proxy


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: FaultyProxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        rule = self.proxy.rule_for(self.command, self.path, body)
        fault = rule.fault if rule else None
        if fault in ("error 503", "error 403"):
            self._answer(int(fault[-3:]), {"Content-Type": "application/json"}, b'{"error": {"message": "not now"}}')
            return
        if fault == "reset":
            self._reset()
            return
        if fault == "stall":
            self.proxy.pause(600)
            self._reset()
            return
        if rule and fault == "slow":
            self.proxy.pause(rule.seconds)
        if fault == "flipped upload":
            body = _flipped(body)
        upstream = urlsplit(self.proxy.upstream)
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        try:
            connection.request(self.command, self.path, body or None, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _OWN}
        finally:
            connection.close()
        promised = None
        if fault in ("truncated", "short body"):
            promised = len(data) if fault == "short body" else None
            data = data[: len(data) // 2]
        elif fault == "flipped bit":
            data = _flipped(data)
        self._answer(answer.status, kept, data, promised=promised)
        if promised is not None:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _pass_on

    def _answer(self, status: int, headers: dict[str, str], data: bytes, promised: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if promised is None else promised))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        # Closed with nothing to linger for, a connection is reset instead of ended.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test says what matters."""


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


_OWN = {"transfer-encoding", "connection", "content-length", "date", "server"}
