"""Who may use the server."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drl_dist.jobs.serve.web.refusals import refusal

COOKIE = "drl_token_"
"""And some digits of the token's digest: a browser keeps cookies by host alone, for servers of all ports together."""
_OWN_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def digest(token: str) -> str:
    """SHA-256 of a token: what settings and logs may hold of it, as long as it is a long random one."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    Args:
        token_sha256: `digest` of the token that visitors must have; None lets in everyone who calls the server by a
            name of this machine.
    """

    token_sha256: str | None = None


class AccessMiddleware:
    """Lets in those who may, and adds the headers that keep a browser from loading anything from elsewhere.

    A page of another site could let a browser ask for images, which it could not read, but which would cost time: what
    a browser asks on behalf of such a page is refused, except where a link is followed to the page itself.

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
        if self._is_of_another_site(headers, scope):
            sentence = (
                "request: got one that a page of another site made, expected one of the server's own page; open that "
                "by its address."
            )
            await refusal(403, sentence)(scope, receive, send)
            return
        if self._access.token_sha256 is None:
            host = re.sub(r":\d*$", "", headers.get("host", "").lower())
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
            response.set_cookie(
                self._cookie, given, httponly=True, samesite="strict", secure=scope["scheme"] == "https"
            )
            await response(scope, receive, send)
            return
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        cookie = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        if any(self._is_right(token) for token in (bearer, cookie) if token):
            await self._app(scope, receive, send)
            return
        sentence = (
            f"token: got {'another one' if given or bearer or cookie else 'none'}, expected the server's; open the "
            "page with ?token=TOKEN, or send the header Authorization: Bearer TOKEN."
        )
        await refusal(401, sentence, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_of_another_site(self, headers: Headers, scope: Scope) -> bool:
        """Whether a browser asks on behalf of a page of another site; programs say nothing of that."""
        site = headers.get("sec-fetch-site")
        if site is None:
            # An older browser, which tells it of a POST. In front of a server with a token there may be a proxy of
            # another name, and its cookie is not sent from other sites.
            origin = headers.get("origin")
            if origin is None or self._access.token_sha256 is not None:
                return False
            return origin.partition("://")[2] != headers.get("host")
        is_link = headers.get("sec-fetch-mode") == "navigate" and not scope["path"].startswith("/api/")
        return site not in ("same-origin", "none") and not (is_link and scope["method"] == "GET")

    @property
    def _cookie(self) -> str:
        return COOKIE + (self._access.token_sha256 or "")[:8]

    def _is_right(self, token: str) -> bool:
        return hmac.compare_digest(digest(token), self._access.token_sha256 or "")
