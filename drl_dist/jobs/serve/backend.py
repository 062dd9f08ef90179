"""The replicas, as the front sees them: whichever has room, and another one if it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.jobs.serve.host import OUTLOOK_SECONDS
from drl_dist.jobs.serve.web.backend import About, Again, News, Outlook, ScoredLevel, Shown
from drl_dist.serving.engine import Busy, EngineEnded
from drl_dist.serving.requests import Request

MAX_LOSSES = 5
"""Replicas that a request may lose before it is given up."""
LOSS_SECONDS = 0.5
"""Before another one is asked."""
_LOSSES = (RayActorError, EngineEnded)
"""Of a replica: its process, or the thread that works in it, after which Ray replaces it."""


class RayBackend:
    """See `drl_dist.jobs.serve.web.backend.Backend`.

    Args:
        replicas: their handle.
    """

    def __init__(self, replicas: DeploymentHandle[Any]) -> None:
        self._replicas = replicas

    async def about(self) -> About:
        """See `Backend.about`."""
        return await self._asked(self._replicas.about.remote)

    async def scores(self, image: Tensor, seed: int, label: str | None) -> list[ScoredLevel]:
        """See `Backend.scores`."""
        found = await self._asked(lambda: self._replicas.scores.remote(image, seed, label))
        if isinstance(found, UserError):
            raise found
        return found

    async def reference(self) -> list[list[float]] | None:
        """See `Backend.reference`."""
        return await self._asked(self._replicas.reference.remote)

    async def visit(self, request: Request, *, has_film: bool) -> AsyncGenerator[News, None]:
        """See `Backend.visit`."""
        shown: int | None = None
        for losses in range(MAX_LOSSES + 1):
            try:
                async with aclosing(self._once(request, has_film)) as news:
                    async for part in news:
                        if isinstance(part, Shown):
                            if shown is not None and part.level >= shown:
                                # The seed gives the same levels again.
                                continue
                            shown = part.level
                        yield part
                return
            except _LOSSES as error:
                if losses == MAX_LOSSES:
                    raise _lost(losses + 1) from error
            yield Again()
            await asyncio.sleep(LOSS_SECONDS)

    async def _once(self, request: Request, has_film: bool) -> AsyncGenerator[News, None]:
        """One replica's answer; a word now and then while none has begun, or a level takes long."""
        stream: Any = self._replicas.options(stream=True).visit.remote(request, has_film)
        pending: asyncio.Task[list[News] | list[UserError]] | None = None
        try:
            while True:
                pending = pending or asyncio.ensure_future(anext(stream))
                done, _ = await asyncio.wait({pending}, timeout=4 * OUTLOOK_SECONDS)
                if not done:
                    yield Outlook(0, None)
                    continue
                try:
                    bundle = pending.result()
                except StopAsyncIteration:
                    return
                pending = None
                for part in bundle:
                    if isinstance(part, UserError):
                        raise part
                    yield part
        except Exception as error:
            told = _of_replica(error)
            if told is error:
                raise
            raise told from error
        finally:
            if pending is not None:
                pending.add_done_callback(_forget)
                pending.cancel()
            stream.cancel()

    async def _asked(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        for losses in range(MAX_LOSSES + 1):
            try:
                return await _answer(ask)
            except _LOSSES as error:
                if losses == MAX_LOSSES:
                    raise _lost(losses + 1) from error
                await asyncio.sleep(LOSS_SECONDS)
        raise AssertionError("unreachable")


def _forget(left: asyncio.Task[list[News] | list[UserError]]) -> None:
    """Of a visitor who has left: asyncio reports an error that nobody has looked at."""
    if not left.cancelled():
        left.exception()


async def _answer(ask: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await ask()
    except Exception as error:
        raise _of_replica(error) from error


def _of_replica(error: Exception) -> Exception:
    """What a replica has raised, as it would be raised here."""
    if isinstance(error, BackPressureError):
        return Busy("server", got="as many requests as it holds", expected="fewer", remedy="try again later")
    if isinstance(error, RayTaskError) and isinstance(error.cause, UserError | EngineEnded):
        return error.cause
    return error


def _lost(count: int) -> UserError:
    return Busy(
        "server", got=f"{count} processes lost while they worked on this", expected="none", remedy="try again later"
    )
