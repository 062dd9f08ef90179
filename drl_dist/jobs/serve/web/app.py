"""The pages and the API of a model, over whatever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from drl_dist.common.version import installed_version
from drl_dist.jobs.serve.web.access import Access, AccessMiddleware
from drl_dist.jobs.serve.web.backend import Backend
from drl_dist.jobs.serve.web.bodies import MAX_BODY_BYTES, BodyLimits
from drl_dist.jobs.serve.web.refusals import add_refusals
from drl_dist.jobs.serve.web.routes import Routes

PAGE = Path(__file__).parent / "page"
_CURRENT = {"Cache-Control": "no-cache"}
"""Kept by a browser, but asked for again, which costs an answer without a body where nothing has changed."""


def create_app(backend: Backend, access: Access, *, max_seconds: float = 600.0) -> FastAPI:
    """An ASGI application.

    Args:
        backend: runs the model.
        access: who may use it.
        max_seconds: until an image is given up.
    """
    app = FastAPI(
        title="drl_dist",
        version=installed_version(),
        summary="Images of an energy-based model, and what it thinks of others",
        # The page of these would come from another host; ours is api.html.
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.add_middleware(BodyLimits)
    app.add_middleware(AccessMiddleware, access=access)
    add_refusals(app)
    app.include_router(Routes(backend, max_seconds=max_seconds, max_body_bytes=MAX_BODY_BYTES).router)

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=_CURRENT)

    @app.get("/api", include_in_schema=False)
    async def api() -> FileResponse:
        return FileResponse(PAGE / "api.html", headers=_CURRENT)

    app.mount("/page", _PageFiles(directory=PAGE), name="page")
    return app


class _PageFiles(StaticFiles):
    """Files of one version of the page: a browser must not mix them with those that it had before."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_CURRENT)
        return response
