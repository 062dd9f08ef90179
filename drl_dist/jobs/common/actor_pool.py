"""A pool of actors that run numbered tasks. A dead actor is replaced and its task run again, with the same result."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from drl_dist.common.errors import UserError
from drl_dist.common.progress import Advance, UnderWay
from drl_dist.jobs.common.cluster import room_wanted

Record = TypeVar("Record")
Record_co = TypeVar("Record_co", covariant=True)

MAX_FAILURES = 3
"""Workers that may die over the same task, or before they are ready, until the job gives up."""
LOOK_SECONDS = 2.0


class TaskRunner(Protocol[Record_co]):
    """Makes tasks, one after the other, on one device."""

    def make(self, task: int) -> Iterator[int | UnderWay | Record_co]:
        """Make a task, whose result is a pure function of its number; the number of items after each part, then the
        record. Before a part that takes long, and while it does, it may say how far it is."""
        ...


class SampleWorker:
    """A `TaskRunner` in a Ray actor."""

    def __init__(self, new_runner: Callable[..., TaskRunner[Any]], *arguments: Any) -> None:
        self._runner = new_runner(*arguments)

    def ready(self) -> None:
        """Return once the worker is set up."""

    def make(self, task: int) -> Iterator[Any]:
        """See `TaskRunner.make`."""
        yield from self._runner.make(task)


class WorkerPool(Generic[Record]):
    """Makes tasks on a number of actors.

    Args:
        size: actors.
        cpus: of each actor.
        gpus: of each actor.
        new_runner: what each actor makes its `TaskRunner` with.
        arguments: of `new_runner`.
    """

    def __init__(
        self,
        size: int,
        *,
        cpus: int,
        gpus: int,
        new_runner: Callable[..., TaskRunner[Record]],
        arguments: Sequence[Any],
    ) -> None:
        self._size, self._cpus, self._gpus = size, cpus, gpus
        actor = ray.remote(SampleWorker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
        # The weights are sent to each machine once.
        stored = [ray.put(argument) for argument in arguments]
        self._new_actor: Callable[[], Any] = lambda: actor.remote(new_runner, *stored)
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int]] = {}
        self._deaths: dict[int | None, int] = {}
        self._made: dict[int, int] = {}
        self._under_way: dict[int, UnderWay] = {}

    def run(self, tasks: Sequence[int], advance: Advance) -> Iterator[tuple[int, Record]]:
        """Make tasks, in no particular order.

        Args:
            tasks: their numbers.
            advance: called with the number of items made, negative when a worker's death lost some.

        Yields:
            the number and the record of each task.

        Raises:
            UserError: from a task, or workers died more often than `MAX_FAILURES` times.
            ray.exceptions.RayTaskError: from a task, if it is another error.
        """
        queue = deque(tasks)
        for _ in range(min(self._size, len(queue))):
            self._start()
        while queue or self._busy:
            self._give(queue)
            made = 0
            for item in self._ready():
                if item in self._starting:
                    self._started(item)
                    continue
                _, task = self._busy[item]
                try:
                    news: Any = ray.get(next(item))
                except RayActorError as error:
                    self._under_way.pop(task, None)
                    made -= self._made.pop(task, 0)
                    del self._busy[item]
                    queue.appendleft(task)
                    self._replace(task, error)
                except RayTaskError as error:
                    if isinstance(error.cause, UserError):
                        raise error.cause from None
                    raise
                else:
                    if isinstance(news, UnderWay):
                        self._under_way[task] = news
                        continue
                    self._under_way.pop(task, None)
                    if isinstance(news, int):
                        self._made[task] = self._made.get(task, 0) + news
                        made += news
                    else:
                        self._idle.append(self._busy.pop(item)[0])
                        self._made.pop(task, None)
                        # The worker does not wait for what is done with its record.
                        self._give(queue)
                        yield task, news
            self._refresh(advance, made)

    def close(self) -> None:
        """End all actors, so that what they hold is free at once."""
        for worker in (*self._starting.values(), *self._idle, *(worker for worker, _ in self._busy.values())):
            ray.kill(worker)

    def _give(self, queue: deque[int]) -> None:
        while queue and self._idle:
            worker, task = self._idle.pop(), queue.popleft()
            self._busy[worker.make.options(num_returns="streaming").remote(task)] = (worker, task)

    def _ready(self) -> list[Any]:
        """All that have news, streams and plain references alike; none if there are none for `LOOK_SECONDS`.

        Looking takes as long as there are workers. If it were done for each piece of news, thousands of workers, which
        have as many a second, would be more than a driver can follow.
        """
        ready: list[Any]
        ready, others = ray.wait([*self._starting, *self._busy], num_returns=1, timeout=LOOK_SECONDS)
        if ready and others:
            more, _ = ray.wait(others, num_returns=len(others), timeout=0)
            ready += more
        return ready

    def _start(self) -> None:
        worker = self._new_actor()
        self._starting[worker.ready.remote()] = worker

    def _started(self, ready: Any) -> None:
        worker = self._starting.pop(ready)
        try:
            ray.get(ready)
        except RayActorError as error:
            self._replace(None, error)
        else:
            self._deaths.pop(None, None)
            self._idle.append(worker)

    def _replace(self, task: int | None, error: RayActorError) -> None:
        what = "a worker that was starting" if task is None else f"the worker of task {task}"
        self._deaths[task] = self._deaths.get(task, 0) + 1
        reason = " ".join(str(error).split())[:300]
        if self._deaths[task] > MAX_FAILURES:
            raise UserError(
                what,
                got=f"its death {self._deaths[task]} times in a row ({reason})",
                expected=f"at most {MAX_FAILURES} deaths",
                remedy="lower --batch-size if memory ran out, look at Ray's logs, then repeat the command, "
                "which resumes",
            )
        print(f"{what} died ({reason}); another one takes over", flush=True)
        self._start()

    def _refresh(self, advance: Advance, items: int = 0) -> None:
        under_way = sum(one.items for one in self._under_way.values())
        advance(items, self._note(), under_way=under_way, is_starting=not self._busy)

    def _note(self) -> str:
        """What the workers do or wait for; of the tasks at work, how far the one is that is furthest behind."""
        if self._starting and not self._busy:
            return room_wanted(len(self._starting), cpus=self._cpus, gpus=self._gpus)
        states = ((len(self._busy), "busy"), (len(self._starting), "starting"))
        note = "workers: " + ", ".join(f"{count} {state}" for count, state in states if count)
        if self._under_way:
            note += "; " + min(self._under_way.values(), key=lambda one: one.items).what
        return note
