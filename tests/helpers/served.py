"""The pages and the API over a model in this process, on a port of this machine."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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


@contextmanager
def served(
    backend: Backend, access: Access | None = None, *, port: int | None = None, max_seconds: float = 600
) -> Iterator[Client]:
    """The application over a backend, as a server in a thread."""
    (chosen,) = free_ports(1) if port is None else (port,)
    app = create_app(backend, access or Access(), max_seconds=max_seconds)
    server = uvicorn.Server(uvicorn.Config(app, host=HOST, port=chosen, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server has ended"
        time.sleep(0.01)
    try:
        yield Client(f"http://{HOST}:{chosen}")
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


@contextmanager
def served_model(
    model: Model, data: str | None = None, *, max_batch: int = 16, max_waiting: int = 64, port: int | None = None
) -> Iterator[tuple[Client, ModelHost]]:
    """The application over a model."""
    host = ModelHost(model, name="a model", data=data, max_batch=max_batch, max_waiting=max_waiting)
    with host.running(), served(host, port=port) as client:
        yield client, host
