"""Bodies of requests: how large, how slow and how many at once they may be."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drl_dist.jobs.serve.web.refusals import RETRY_SECONDS, refusal

MAX_BODY_BYTES = 8 * 2**20
"""Of a request: a photograph in base64, and a mask."""
BODY_SECONDS = 30.0
"""Within which it must have come."""
MAX_HELD_BYTES = 16 * MAX_BODY_BYTES
"""Of all bodies at once."""
_Refused = tuple[int, str, dict[str, str]]
"""Status, sentence and headers."""


class BodyLimits:
    """Reads the body of a request before anything else is done with it, or refuses it in one sentence.

    Args:
        app: answers what is not refused.
        max_bytes: of a body.
        max_held: of those that are in memory.
        seconds: within which a body must have come.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int = MAX_BODY_BYTES,
        max_held: int = MAX_HELD_BYTES,
        seconds: float = BODY_SECONDS,
    ) -> None:
        self._app, self._max_bytes, self._max_held, self._seconds = app, max_bytes, max_held, seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        try:
            refused = self._declared(scope) or await self._read(receive, parts)
            if refused is not None:
                await refusal(*refused)(scope, receive, send)
                return
            body: bytes | None = b"".join(parts)

            async def whole() -> Message:
                nonlocal body
                if body is None:
                    # A disconnect.
                    return await receive()
                message: Message = {"type": "http.request", "body": body, "more_body": False}
                body = None
                return message

            await self._app(scope, whole, send)
        finally:
            self._held -= sum(len(part) for part in parts)

    def _declared(self, scope: Scope) -> _Refused | None:
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_bytes:
            return self._too_large(f"{length} bytes")
        return None

    async def _read(self, receive: Receive, parts: list[bytes]) -> _Refused | None:
        """Read the body; a refusal if it cannot be had."""
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return 400, "request: got a visitor who has left, expected a body; send it again.", {}
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._max_bytes:
                        return self._too_large("more")
                    parts.append(part)
                    self._held += len(part)
                    if self._held > self._max_held:
                        sentence = "server: got too many pictures at once, expected fewer; try again later."
                        return 503, sentence, {"Retry-After": str(RETRY_SECONDS)}
                    if not message.get("more_body", False):
                        return None
        except TimeoutError:
            sentence = (
                f"request: got a body that is not complete after {self._seconds:g} s, expected all of it; send it "
                "again."
            )
            return 408, sentence, {"Connection": "close"}

    def _too_large(self, got: str) -> _Refused:
        return 413, f"request: got {got}, expected at most {self._max_bytes} bytes; send a smaller picture.", {}
