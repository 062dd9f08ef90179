"""What a visitor is told while an image is made, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

import pytest

from drl_dist.common.errors import UserError
from drl_dist.jobs.serve.web.backend import Again, News, Outlook, Shown
from drl_dist.serving.engine import Busy
from tests.helpers.served import Client, served

EVENTS = {"Accept": "text/event-stream"}
FAULT = UserError("image", got="nan", expected="finite pixels", remedy="use an earlier checkpoint")


class Told:
    """A backend that tells what it was told to: news, seconds of silence, and errors."""

    def __init__(self, *parts: News | float | Exception) -> None:
        self._parts = parts
        self.num_closed = 0
        self.has_film: bool | None = None

    async def visit(self, _: object, *, has_film: bool) -> AsyncGenerator[News, None]:
        self.has_film = has_film
        try:
            for part in self._parts:
                if isinstance(part, Exception):
                    raise part
                if isinstance(part, float):
                    await asyncio.sleep(part)
                    continue
                yield part
        finally:
            self.num_closed += 1

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not asked for")


def shown(*levels: int) -> list[News]:
    return [Shown(level, b"png %d" % level, 0.5) for level in levels]


def ask(told: Told, accept: str = "text/event-stream", **more: Any) -> Any:
    with served(told, **more) as client:  # pyright: ignore[reportArgumentType]
        return client.ask("/api/sample", headers={"Accept": accept})


def test_all_news_are_events() -> None:
    told = Told(Outlook(2, None), Outlook(0, 1.5), *shown(1), Again(), *shown(0))
    events = ask(told).events()
    assert [name for name, _ in events] == ["outlook", "outlook", "frame", "again", "frame", "done"]
    assert events[0][1] == {"ahead": 2, "seconds": None} and events[1][1] == {"ahead": 0, "seconds": 1.5}
    assert events[2][1]["level"] == 1 and events[2][1]["energy"] == 0.5 and events[5][1]["seconds"] >= 0
    assert told.num_closed == 1 and told.has_film


@pytest.mark.parametrize("accept", ["image/png", "application/json"])
def test_who_waits_for_the_image_alone_is_sent_no_levels(accept: str) -> None:
    told = Told(Outlook(0, 1.0), *shown(0))
    assert ask(told, accept).status == 200 and told.has_film is False


@pytest.mark.parametrize("accept", ["image/png", "application/json", "text/event-stream"])
def test_a_refusal_before_any_news_has_a_status(accept: str) -> None:
    answered = ask(Told(FAULT), accept)
    assert answered.status == 400 and answered.json() == {"error": str(FAULT)}
    busy = ask(Told(Busy("server", got="9", expected="8", remedy="come later")), accept)
    assert busy.status == 503 and busy.headers["retry-after"]


def test_an_error_after_the_first_news_is_the_last_event() -> None:
    told = Told(*shown(2, 1), FAULT)
    answered = ask(told)
    assert answered.status == 200
    assert answered.events()[-1] == ("error", {"error": str(FAULT)}) and told.num_closed == 1
    assert ask(Told(*shown(2), FAULT), "image/png").status == 400


def test_a_bug_ends_the_stream_without_its_done() -> None:
    with served(Told(*shown(2), ZeroDivisionError("secret"))) as client:  # pyright: ignore[reportArgumentType]
        parts = urlsplit(client.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
            connection.sendall(b"GET /api/sample HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
            heard = b"".join(iter(lambda: connection.recv(4096), b""))
    # Not ended as a stream in chunks is, so that a client asks again.
    assert b"event: frame" in heard and b"done" not in heard and b"secret" not in heard
    assert not heard.endswith(b"0\r\n\r\n")
    answered = ask(Told(ZeroDivisionError("secret")))
    assert answered.status == 500 and answered.json()["error"].startswith("server: got ZeroDivisionError")


def test_an_image_that_takes_too_long_is_given_up() -> None:
    told = Told(*shown(2), 30.0, *shown(1, 0))
    events = ask(told, max_seconds=0.2).events()
    name, data = events[-1]
    assert name == "error" and "image: got none within 0.2 s" in data["error"] and told.num_closed == 1
    late = ask(Told(Outlook(0, 1.0), 30.0), "image/png", max_seconds=0.2)
    assert late.status == 400 and "none within 0.2 s" in late.json()["error"]


@pytest.mark.parametrize("accept", ["image/png", "text/event-stream"])
def test_who_closes_the_connection_ends_the_visit(accept: str) -> None:
    parts: list[News | float] = [part for _ in range(2000) for part in (0.05, Outlook(0, 60.0))]
    told = Told(Outlook(0, 60.0), *parts)
    with served(told) as client:  # pyright: ignore[reportArgumentType]
        _leave(client, accept)
        deadline = time.monotonic() + 10
        while told.num_closed == 0:
            assert time.monotonic() < deadline, "nobody noticed"
            time.sleep(0.02)


def _leave(client: Client, accept: str) -> None:
    parts = urlsplit(client.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(f"GET /api/sample HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n".encode())
        time.sleep(0.2)
