"""Errors as one sentence in JSON."""

from __future__ import annotations

import re
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
        # Fields have the names of the jobs' options.
        return refusal(400, str(error).removeprefix("--"))

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        if any(isinstance(part.get("input"), bytes) for part in error.errors()):
            # FastAPI leaves a body of any other type as it is.
            kind = request.headers.get("content-type", "nothing")[:_SHOWN_CHARACTERS]
            sentence = f"header Content-Type: got {kind}, expected application/json; send the body as JSON."
            return refusal(400, sentence)
        return refusal(400, _sentence(error.errors()))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        expected = {404: "an address of /api/openapi.json", 405: "a method of /api/openapi.json"}
        what = UserError(
            f"{request.method} {request.url.path[:_SHOWN_CHARACTERS]}",
            got=f"{error.status_code} {error.detail}",
            # Text that is not UTF-8, or has too many brackets or digits.
            expected=expected.get(error.status_code, "a JSON object that can be read"),
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
    # "Input should be a valid integer, unable to parse string as an integer", of which this says the half.
    message = re.sub(r"^\w+ should (be|have) |, unable to parse .*", "", str(error["msg"]))
    if error["type"] == "missing":
        return "a value"
    if error["type"] == "extra_forbidden":
        return "a field of /api/openapi.json"
    if error["type"] in ("json_invalid", "model_attributes_type", "model_type"):
        return "a JSON object"
    return message[:1].lower() + message[1:]
