"""Errors as one sentence in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from drl_dist.common.errors import UserError
from drl_dist.jobs.serve.web.schemas import Refusal
from drl_dist.serving.engine import Busy

RETRY_SECONDS = 5
_SHOWN_CHARACTERS = 80


def refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says why there is no other."""
    return JSONResponse(Refusal(error=sentence).model_dump(), status, headers)


def add_refusals(app: FastAPI) -> None:
    """Let an application answer all errors so."""

    @app.exception_handler(UserError)
    async def of_user(_: Request, error: UserError) -> JSONResponse:
        if isinstance(error, Busy):
            return refusal(503, str(error), {"Retry-After": str(RETRY_SECONDS)})
        return refusal(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def of_validation(_: Request, error: RequestValidationError) -> JSONResponse:
        return refusal(400, _sentence(error.errors()))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        expected = "an address of /api/openapi.json"
        what = UserError(
            f"{request.method} {request.url.path[:_SHOWN_CHARACTERS]}",
            got=f"{error.status_code} {error.detail}",
            expected=expected,
            remedy="correct the request",
        )
        return refusal(error.status_code, str(what), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def of_server(_: Request, error: Exception) -> JSONResponse:
        # Its traceback is in the server's log.
        return refusal(500, f"server: got {type(error).__name__}, expected an answer; look at the server's log.")


def _sentence(errors: Sequence[Any]) -> str:
    """The first of what pydantic has found."""
    first = errors[0]
    *_, name = ("request", *(str(part) for part in first["loc"] if part not in ("body", "query")))
    got = "nothing" if first["type"] == "missing" else repr(first.get("input"))[:_SHOWN_CHARACTERS]
    if first["type"] == "json_invalid":
        got = "text that is not JSON"
    return str(UserError(name, got=got, expected=_expected(first), remedy="correct the request"))


def _expected(error: Any) -> str:
    message = str(error["msg"])
    if error["type"] == "missing":
        return "a value"
    if error["type"] == "extra_forbidden":
        return "a field of /api/openapi.json"
    if error["type"] == "json_invalid":
        return "a JSON object"
    return message[:1].lower() + message[1:]
