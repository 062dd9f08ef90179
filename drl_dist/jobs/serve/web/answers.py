"""An image on its way, as a PNG, as JSON or as a stream of events: whichever the visitor accepts."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from drl_dist.common.errors import UserError
from drl_dist.jobs.serve.web.backend import Again, Backend, News, Outlook, Shown
from drl_dist.jobs.serve.web.schemas import Image, Refusal
from drl_dist.serving.requests import Request as Wanted

EVENTS, PNG, JSON = "text/event-stream", "image/png", "application/json"
KINDS = {
    200: {
        "description": "The image: a PNG unless the header Accept asks for JSON, or for events as the chain runs: "
        "`outlook` (ahead, seconds), `frame` (level, energy, image), `again`, and at the end `done` (seconds) or "
        "`error` (error).",
        "content": {PNG: {"schema": {"type": "string", "format": "binary"}}, EVENTS: {"schema": {"type": "string"}}},
    },
}
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def answer(request: Request, backend: Backend, wanted: Wanted, max_seconds: float) -> Response:
    """The image that is wanted in the form that the request accepts.

    Args:
        request: whose header Accept is looked at.
        backend: makes it, until the visitor leaves.
        wanted: the image.
        max_seconds: until the image.

    Raises:
        UserError: as of `Backend.visit`, before any part of the answer was sent.
    """
    began, accepted = time.monotonic(), request.headers.get("accept", "")
    news = backend.visit(wanted, has_film=EVENTS in accepted)
    try:
        # A request that is refused has an answer with a status of its own.
        first = await anext(news)
        if EVENTS in accepted:
            return StreamingResponse(
                _events(first, news, began, max_seconds), media_type=EVENTS, headers=STREAM_HEADERS
            )
        image = await _image(request, first, news, began, max_seconds)
    except BaseException:
        await news.aclose()
        raise
    seconds = time.monotonic() - began
    if JSON in accepted:
        shown = Image(image=encoded(image.png), energy=image.energy, seconds=seconds)
        return JSONResponse(shown.model_dump(mode="json"), headers=STREAM_HEADERS)
    return Response(image.png, media_type=PNG, headers=STREAM_HEADERS)


def encoded(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()


async def _with_deadline(
    first: News, news: AsyncGenerator[News, None], began: float, max_seconds: float
) -> AsyncIterator[News]:
    yield first
    while True:
        try:
            async with asyncio.timeout(began + max_seconds - time.monotonic()):
                part = await anext(news)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise UserError(
                "image",
                got=f"none within {max_seconds:g} s",
                expected="one in less time",
                remedy="ask for fewer chain steps or rounds, or try again when fewer wait",
            ) from error
        yield part


async def _image(
    request: Request, first: News, news: AsyncGenerator[News, None], began: float, max_seconds: float
) -> Shown:
    last: Shown | None = None
    async with aclosing(news):
        async for part in _with_deadline(first, news, began, max_seconds):
            if isinstance(part, Shown):
                last = part
            elif await request.is_disconnected():
                raise UserError(
                    "visitor", got="one who has left", expected="one who waits for the image", remedy="ask again"
                )
    assert last is not None and last.level == 0, "a visit ends with its image, or with an error"
    return last


async def _events(
    first: News, news: AsyncGenerator[News, None], began: float, max_seconds: float
) -> AsyncIterator[bytes]:
    async with aclosing(news):
        try:
            async for part in _with_deadline(first, news, began, max_seconds):
                yield _event(part)
        except UserError as error:
            # The status was sent long ago.
            yield _as_event("error", Refusal(error=str(error)).model_dump())
            return
    yield _as_event("done", {"seconds": round(time.monotonic() - began, 3)})


def _event(part: News) -> bytes:
    if isinstance(part, Outlook):
        return _as_event("outlook", part._asdict())
    if isinstance(part, Again):
        return _as_event("again", {})
    return _as_event("frame", {"level": part.level, "energy": part.energy, "image": encoded(part.png)})


def _as_event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode()
