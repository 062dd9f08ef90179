"""Who may use the server."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drl_dist.jobs.serve.web.refusals import refusal

COOKIE = "drl_token"
_OWN_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def digest(token: str) -> str:
    """SHA-256 of a token: what settings and logs may hold of it, as long as it is a long random one."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    Args:
        token_sha256: `digest` of the token that visitors must have; None lets in everyone who calls the server by a
            name of this machine, which other sites in a browser cannot do.
    """

    token_sha256: str | None = None


class AccessMiddleware:
    """Lets in those who may, and adds the headers that keep a browser from loading anything from elsewhere.

    A token is given as ``Authorization: Bearer TOKEN``; in a browser as ``?token=TOKEN`` of any page, which is put into
    a cookie that scripts cannot read.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._answer(scope, receive, with_headers)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._access.token_sha256 is None:
            host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
            if host not in _OWN_HOSTS:
                sentence = (
                    f"header Host: got {host[:80]!r}, expected {', '.join(_OWN_HOSTS)}; open the page by one of these "
                    "names, or start the server with a token."
                )
                await refusal(403, sentence)(scope, receive, send)
                return
            await self._app(scope, receive, send)
            return
        query = parse_qs(scope["query_string"].decode("latin-1"))
        given = query.pop("token", [""])[0]
        if given and scope["method"] == "GET" and self._is_right(given):
            rest = urlencode(query, doseq=True)
            response = RedirectResponse(scope["path"] + (f"?{rest}" if rest else ""), status_code=303)
            response.set_cookie(COOKIE, given, httponly=True, samesite="strict", secure=scope["scheme"] == "https")
            await response(scope, receive, send)
            return
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if any(self._is_right(token) for token in (bearer, cookie) if token):
            await self._app(scope, receive, send)
            return
        sentence = (
            f"token: got {'another one' if given or bearer or cookie else 'none'}, expected the server's; open the "
            "page with ?token=TOKEN, or send the header Authorization: Bearer TOKEN."
        )
        await refusal(401, sentence, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_right(self, token: str) -> bool:
        return hmac.compare_digest(digest(token), self._access.token_sha256 or "")
