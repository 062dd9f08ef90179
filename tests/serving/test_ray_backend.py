"""A visitor whose replica is lost is served by another one, and sees no level twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from drl_dist.common.errors import UserError
from drl_dist.jobs.serve import backend
from drl_dist.jobs.serve.backend import MAX_LOSSES, RayBackend
from drl_dist.jobs.serve.web.backend import Again, News, Outlook, Shown
from drl_dist.serving.engine import Busy, EngineEnded
from drl_dist.serving.requests import SampleRequest

REQUEST = SampleRequest()


class Returned(NamedTuple):
    """A value, be it an exception."""

    value: Any


class Replicas:
    """Stands for a handle: each call gives the next of the answers, and ends with the exception in it."""

    def __init__(self, *answers: Iterable[Any]) -> None:
        self.answers = list(answers)
        self.num_cancelled = 0
        self.visit = self.about = self.scores = self

    def options(self, *, stream: bool) -> Replicas:
        assert stream
        return self

    def remote(self, *_: Any) -> Any:
        return Stream(self, self.answers.pop(0))


class Stream:
    def __init__(self, replicas: Replicas, parts: Iterable[Any]) -> None:
        self._replicas, self._parts = replicas, iter(parts)

    async def __anext__(self) -> Any:
        try:
            part = next(self._parts)
        except StopIteration:
            raise StopAsyncIteration from None
        if isinstance(part, float):
            await asyncio.sleep(part)
            return await self.__anext__()
        if isinstance(part, Returned):
            return part.value
        if isinstance(part, BaseException):
            raise part
        return [part] if isinstance(part, Outlook | Shown) else part

    def __await__(self) -> Any:
        return self.__anext__().__await__()

    def cancel(self) -> None:
        self._replicas.num_cancelled += 1


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "LOSS_SECONDS", 0.0)


def shown(*levels: int) -> list[News]:
    return [Shown(level, str(level).encode(), None) for level in levels]


def lost() -> Exception:
    return ActorDiedError()


def ended() -> Exception:
    return of_replica(EngineEnded("the engine has ended by OutOfMemoryError"))


def of_replica(error: Exception) -> Exception:
    return RayTaskError("visit", "Traceback", error).as_instanceof_cause()


def news_of(replicas: Replicas) -> list[News]:
    async def listen() -> list[News]:
        return [part async for part in RayBackend(replicas).visit(REQUEST, has_film=True)]  # pyright: ignore[reportArgumentType]

    return asyncio.run(listen())


def test_the_news_of_a_replica_are_passed_on() -> None:
    parts = [Outlook(1, 2.0), *shown(2, 1, 0)]
    assert news_of(Replicas(parts)) == parts


@pytest.mark.parametrize("loss", [lost, ended])
@pytest.mark.parametrize("losses", [1, 3, MAX_LOSSES])
def test_another_replica_goes_on_where_the_first_was(losses: int, loss: Callable[[], Exception]) -> None:
    first = [[Outlook(0, 1.0), *shown(3, 2), loss()]] * losses
    found = news_of(Replicas(*first, [Outlook(0, 1.0), *shown(3, 2, 1, 0)]))
    assert [part.level for part in found if isinstance(part, Shown)] == [3, 2, 1, 0]
    assert found.count(Again()) == losses


def test_losses_have_an_end() -> None:
    replicas = Replicas(*([[*shown(3), lost()]] * (MAX_LOSSES + 1)))
    with pytest.raises(Busy, match=f"got {MAX_LOSSES + 1} processes lost"):
        news_of(replicas)
    assert replicas.answers == []


def test_what_a_replica_refuses_is_refused_once() -> None:
    refusal = UserError("label", got="x", expected="y", remedy="choose")
    with pytest.raises(UserError, match="label: got x, expected y; choose") as caught:
        news_of(Replicas([of_replica(refusal)]))
    assert type(caught.value) is UserError
    full = Busy("server", got="1", expected="0", remedy="wait")
    with pytest.raises(Busy):
        news_of(Replicas([of_replica(full)]))


def test_a_refusal_comes_as_the_last_thing_told() -> None:
    refusal = UserError("label", got="x", expected="y", remedy="choose")
    with pytest.raises(UserError, match="label: got x, expected y; choose"):
        news_of(Replicas([Outlook(0, 1.0), Returned([refusal])]))
    replicas = Replicas([Returned(refusal)])
    scores = RayBackend(replicas).scores(torch.zeros(1, 8, 8), 0, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="label: got x"):
        asyncio.run(_of(scores))


def test_too_many_requests_of_the_handle_are_busy() -> None:
    with pytest.raises(Busy, match="as many requests as it holds"):
        news_of(Replicas([BackPressureError(5, 5)]))


def test_a_bug_stays_one() -> None:
    with pytest.raises(RayTaskError, match="Traceback"):
        news_of(Replicas([of_replica(ZeroDivisionError("division by zero"))]))


def test_silence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "OUTLOOK_SECONDS", 0.01)
    found = news_of(Replicas([0.15, *shown(0)]))
    assert Outlook(0, None) in found and found[-1:] == shown(0)


def test_who_leaves_ends_the_work_of_the_replica() -> None:
    replicas = Replicas([*shown(3, 2), 60.0, *shown(1)])

    async def leave() -> None:
        visit: AsyncGenerator[News, None] = RayBackend(replicas).visit(REQUEST, has_film=True)  # pyright: ignore[reportArgumentType]
        assert await anext(visit) == shown(3)[0]
        await visit.aclose()

    asyncio.run(leave())
    assert replicas.num_cancelled == 1


@pytest.mark.parametrize("error", [lost, lambda: of_replica(UserError("a", got=1, expected=2, remedy="b"))])
def test_questions_are_asked_again_where_a_replica_is_lost(error: Callable[[], Exception]) -> None:
    replicas = Replicas([error()], [7])
    answer = RayBackend(replicas).about()  # pyright: ignore[reportArgumentType]
    if isinstance(error(), UserError):
        with pytest.raises(UserError, match="a: got 1"):
            asyncio.run(_of(answer))
    else:
        assert asyncio.run(_of(answer)) == 7


async def _of(answer: Any) -> Any:
    return await answer
