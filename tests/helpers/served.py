"""The pages and the API over a model in this process, on a port of this machine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn

from drl_dist.jobs.serve.host import ModelHost
from drl_dist.jobs.serve.web.access import Access
from drl_dist.jobs.serve.web.app import create_app
from drl_dist.jobs.serve.web.backend import Backend
from drl_dist.library.model import Model
from drl_dist.localhost.server import HOST, free_ports


@dataclass(frozen=True)
class Answered:
    """An answer over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Names and data of the events in the body."""
        found: list[tuple[str, dict[str, Any]]] = []
        for block in self.body.decode().strip().split("\n\n"):
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Leave the answer as it is."""


@dataclass(frozen=True)
class Client:
    """Asks a server."""

    url: str

    def ask(
        self,
        path: str,
        json_body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answered:
        """GET, or POST where there is a body."""
        sent = dict(headers or {})
        if json_body is not None:
            body = json.dumps(json_body).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(self.url + path, data=body, headers=sent)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
        try:
            with opener.open(request, timeout=60) as answer:
                return Answered(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            return Answered(error.code, dict(error.headers), error.read())

    def stream(self, path: str, json_body: object = None) -> list[tuple[str, dict[str, Any]]]:
        """All events of an image."""
        answered = self.ask(path, json_body, headers={"Accept": "text/event-stream"})
        assert answered.status == 200, answered.body
        return answered.events()


class AppServer:
    """The application over a backend, as a server in a thread; after `kill` it can be started again at its port."""

    def __init__(self, backend: Backend, access: Access | None = None, *, max_seconds: float = 600) -> None:
        self._app = partial(create_app, backend, access or Access(), max_seconds=max_seconds)
        (self._port,) = free_ports(1)
        self.url = f"http://{HOST}:{self._port}"

    def start(self) -> None:
        """Return when it listens."""
        config = uvicorn.Config(self._app(), host=HOST, port=self._port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=[self._server.serve([self._listening()])], daemon=True
        )
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server has ended"
            time.sleep(0.01)

    def kill(self) -> None:
        """Break all connections in the middle of whatever they are at, and end."""
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._abort)
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._loop.close()

    def _abort(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()

    def _listening(self) -> socket.socket:
        # Connections of the server before are not over yet for the kernel.
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, self._port))
        return listening


@contextmanager
def served(backend: Backend, access: Access | None = None, *, max_seconds: float = 600) -> Iterator[Client]:
    """The application over a backend, on a port of its own."""
    server = AppServer(backend, access, max_seconds=max_seconds)
    server.start()
    try:
        yield Client(server.url)
    finally:
        server.kill()


@contextmanager
def served_model(
    model: Model, data: str | None = None, *, max_batch: int = 16, max_waiting: int = 64
) -> Iterator[tuple[Client, ModelHost]]:
    """The application over a model."""
    host = ModelHost(model, name="a model", data=data, max_batch=max_batch, max_waiting=max_waiting)
    with host.running(), served(host) as client:
        yield client, host
