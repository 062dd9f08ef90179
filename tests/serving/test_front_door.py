"""Bodies that are too large, too slow or too many, and visitors who may not enter, are refused in one sentence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from drl_dist.common.errors import UserError
from drl_dist.jobs.serve.token import MIN_CHARACTERS, read_token
from drl_dist.jobs.serve.web.access import COOKIE, Access, AccessMiddleware, digest
from drl_dist.jobs.serve.web.bodies import BodyLimits

TOKEN = "a-long-token-that-nobody-guesses"


class Asked:
    """A request at an ASGI application, and its answer."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 0, {}, b""

    async def __call__(
        self, app: Any, parts: Iterable[bytes | float], *, headers: dict[str, str] | None = None, query: str = ""
    ) -> Asked:
        coming = list(parts) or [b""]

        async def receive() -> dict[str, Any]:
            while coming:
                part = coming.pop(0)
                if isinstance(part, float):
                    await asyncio.sleep(part)
                    continue
                return {"type": "http.request", "body": part, "more_body": bool(coming)}
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                self.body += message.get("body", b"")

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/api/model",
            "scheme": "http",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        await app(scope, receive, send)
        return self

    @property
    def error(self) -> str:
        return json.loads(self.body)["error"]


async def echo(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Answers with the size of the body, then waits for the visitor to leave."""
    message = await receive()
    assert not message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(message["body"])).encode()})
    assert (await receive())["type"] == "http.disconnect"


def ask(app: Any, *parts: bytes | float, **more: Any) -> Asked:
    return asyncio.run(Asked()(app, parts, **more))


def test_a_body_comes_whole() -> None:
    app = BodyLimits(echo, max_bytes=100)
    assert ask(app, b"x" * 60, 0.01, b"y" * 40).body == b"100"
    assert ask(app).body == b"0"


def test_a_body_that_is_too_large_is_refused_before_it_has_come() -> None:
    app = BodyLimits(echo, max_bytes=100)
    told = ask(app, b"", headers={"Content-Length": "101"})
    assert (told.status, told.error) == (
        413,
        "request: got 101 bytes, expected at most 100 bytes; send a smaller picture.",
    )
    # Chunks without an end: no more of them is read than fits.
    taken: list[int] = []

    def endless() -> Iterable[bytes]:
        for number in range(10_000):
            taken.append(number)
            yield b"z" * 30

    assert asyncio.run(_endless(app, endless())).status == 413
    assert len(taken) <= 5


async def _endless(app: Any, chunks: Iterable[bytes]) -> Asked:
    asked, source = Asked(), iter(chunks)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(source), "more_body": True}

    async def send(message: Any) -> None:
        asked.status = message.get("status", asked.status)

    await app({"type": "http", "method": "POST", "headers": [], "query_string": b""}, receive, send)
    return asked


def test_a_body_that_never_ends_is_refused_in_time() -> None:
    told = ask(BodyLimits(echo, seconds=0.05), b"x", 5.0, b"y")
    assert told.status == 408 and "not complete after 0.05 s" in told.error and told.headers["connection"] == "close"


def test_bodies_together_are_bounded_and_let_go_of() -> None:
    app = BodyLimits(echo, max_bytes=100, max_held=150)

    async def together() -> list[Asked]:
        return await asyncio.gather(*(Asked()(app, [b"x" * 80, 0.1, b"y"]) for _ in range(3)))

    found = asyncio.run(together())
    assert sorted(asked.status for asked in found) == [200, 503, 503]
    refused = next(asked for asked in found if asked.status == 503)
    assert "too many pictures at once" in refused.error and int(refused.headers["retry-after"]) > 0
    assert [asked.status for asked in asyncio.run(_after(app))] == [200] * 3


async def _after(app: Any) -> list[Asked]:
    return [await Asked()(app, [b"x" * 100]) for _ in range(3)]


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "localhost", "[::1]:8000"])
def test_without_a_token_this_machine_enters(host: str) -> None:
    assert ask(AccessMiddleware(echo, Access()), headers={"Host": host}).status == 200


@pytest.mark.parametrize("host", ["example.org", "localhost.example.org:8000", "10.0.0.1:8000", "", "127.0.0.1.nip.io"])
def test_without_a_token_other_names_do_not_enter(host: str) -> None:
    # A site whose name leads to this machine must not read what is served here.
    told = ask(AccessMiddleware(echo, Access()), headers={"Host": host})
    assert told.status == 403 and "start the server with a token" in told.error


DOOR = AccessMiddleware(echo, Access(digest(TOKEN)))


def test_a_token_opens_from_anywhere() -> None:
    host = {"Host": "example.org"}
    assert ask(DOOR, headers={**host, "Authorization": f"Bearer {TOKEN}"}).status == 200
    assert ask(DOOR, headers={**host, "Cookie": f"other=1; {COOKIE}={TOKEN}"}).status == 200


@pytest.mark.parametrize(
    ("headers", "query", "got"),
    [
        ({}, "", "none"),
        ({"Authorization": f"Bearer {TOKEN}x"}, "", "another one"),
        ({"Authorization": "Bearer "}, "", "none"),
        ({"Cookie": f"{COOKIE}={TOKEN[:-1]}"}, "", "another one"),
        ({}, f"token={TOKEN}x", "another one"),
        ({"Authorization": f"Bearer {digest(TOKEN)}"}, "", "another one"),
    ],
)
def test_no_token_and_wrong_ones_do_not_open(headers: dict[str, str], query: str, got: str) -> None:
    told = ask(DOOR, headers={"Host": "localhost", **headers}, query=query)
    assert told.status == 401 and f"got {got}, expected the server's" in told.error
    assert told.headers["www-authenticate"] == "Bearer" and TOKEN not in told.error


def test_a_token_in_the_address_becomes_a_cookie_that_scripts_cannot_read() -> None:
    told = ask(DOOR, headers={"Host": "example.org"}, query=f"seed=3&token={TOKEN}&label=a%20b")
    assert told.status == 303 and told.headers["location"] == "/api/model?seed=3&label=a+b"
    cookie = told.headers["set-cookie"]
    assert f"{COOKIE}={TOKEN}" in cookie and "HttpOnly" in cookie and "SameSite=strict" in cookie


def test_a_token_file_is_made_for_its_owner_alone(tmp_path: Any) -> None:
    path = tmp_path / "token"
    token = read_token(str(path), create=True)
    assert len(token) > MIN_CHARACTERS and path.stat().st_mode & 0o777 == 0o600
    assert read_token(str(path), create=True) == token == read_token(str(path), create=False)


@pytest.mark.parametrize(
    "content", ["", "short\n", "several words that are long enough", "ünïcödé-which-is-long-enough"]
)
def test_a_token_that_can_be_guessed_is_refused(tmp_path: Any, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(UserError, match="expected at least 20 of ASCII") as caught:
        read_token(str(path), create=True)
    assert not content.strip() or content.strip() not in str(caught.value)


def test_a_token_file_that_is_not_there_is_told(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"token file .*nowhere/token"):
        read_token(str(tmp_path / "nowhere" / "token"), create=True)
    with pytest.raises(UserError, match="expected a file with a token"):
        read_token(str(tmp_path / "token"), create=False)
