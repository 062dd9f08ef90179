"""Chains of different visitors, advanced together: one call of the network for a step of all of them.

Noise levels are given to the network image by image, so requests that are at different levels, or at different steps of
their chains, share its calls, and a new one joins at the next call. All else is computed for each request by itself, so
that its image depends on the others by the network's rounding alone: a request without company gives the image of
``Model.sample(..., batch_size=1)`` bit for bit; in company its pixels may differ by a grey level where a rounding falls
the other way.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from drl_dist.common.errors import UserError, described
from drl_dist.common.images import to_uint8
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.library.arguments import whole
from drl_dist.library.engine import check_finite, fixed_sums, frozen_engine
from drl_dist.library.model import Model
from drl_dist.serving.outlook import calls_until
from drl_dist.serving.requests import Begun, Request, Served
from drl_dist.serving.stepping import Answer, Question, Reached, questions

_NEWS_WEIGHT = 0.1
"""Of the last call in the running mean of their seconds."""


class Frame(NamedTuple):
    """What a visitor sees of a level."""

    level: int
    """t: from T, white noise, to 0, the image."""
    image: Tensor
    """uint8 (C, H, W) on the CPU: x_t, clipped."""
    energy: float | None
    """Mean of -log p over the level's chain, in nats up to a constant of the level; None where there was no chain."""


Listener = Callable[[Frame | BaseException], None]
"""Called in the engine's thread with each frame, and with the error that ends a visit; it must not wait."""


class Outlook(NamedTuple):
    """What a visitor has to wait for."""

    ahead: int
    """Requests that wait for room before it does; 0 once it is in the batch."""
    seconds: float | None
    """Until its image, if all goes on as in the last calls; None before the first call."""


class EngineEnded(RuntimeError):
    """The engine is not at work any more; its cause says why, if it was not asked to end."""


class Busy(UserError):
    """As many requests wait as may; later there will be room."""


class Visit:
    """A request that an engine has taken; safe in any thread."""

    def __init__(self, num_gradients: int, listener: Listener | None = None) -> None:
        self.num_gradients = num_gradients
        """That the whole of it takes."""
        self.num_answered = 0
        """Gradients that it has had so far."""
        self._frames: queue.SimpleQueue[Frame | BaseException] = queue.SimpleQueue()
        self._listener: Listener = listener or self._frames.put
        self._is_cancelled = threading.Event()
        self._is_over = threading.Event()

    def frames(self) -> Iterator[Frame]:
        """T + 1 frames, each as soon as it is there; to be iterated over once, unless a listener gets them.

        Raises:
            UserError: the image is not finite, or the visit was cancelled.
            EngineEnded: the engine has ended before.
        """
        while True:
            frame = self._frames.get()
            if isinstance(frame, BaseException):
                raise frame
            yield frame
            if frame.level == 0:
                return

    def image(self) -> Tensor:
        """The image, uint8 (C, H, W), when it is there; errors as of `frames`."""
        return list(self.frames())[-1].image

    def cancel(self) -> None:
        """Give its place to others, at the latest after the next call of the network."""
        self._is_cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._is_cancelled.is_set()

    @property
    def is_over(self) -> bool:
        """Whether all frames are there, or an error."""
        return self._is_over.is_set()

    def tell(self, news: Frame | BaseException) -> None:
        """Of the engine: hand over a frame, or the error that ends the visit."""
        self._listener(news)
        if isinstance(news, BaseException) or news.level == 0:
            self._is_over.set()


@dataclass(eq=False)
class _Guest:
    """A visit in the batch, and what it asks for next."""

    visit: Visit
    begun: Begun
    steps: Generator[Question | Reached, Answer | None, None]
    question: Question | None = None


class ServingEngine:
    """Makes images of one model for many visitors.

    Args:
        model: whose weights and device it takes; later changes of the model do not matter.
        max_batch: images that the network is given at once; sums of energies take several for each request.
        max_waiting: requests that may wait for room.

    Raises:
        UserError: a number is too small.
    """

    def __init__(self, model: Model, *, max_batch: int = 16, max_waiting: int = 64) -> None:
        self.max_batch = whole("max_batch", max_batch, "at least 1", 1)
        self.max_waiting = whole("max_waiting", max_waiting, "at least 0", 0)
        # Its own: a captured graph holds the levels of one caller.
        self._engine = frozen_engine(model.experiment, model.weights, model.device)
        self._served = Served(model.experiment, self._engine.network.curvature, model.image_shape, model.device)
        self._guests: list[_Guest] = []
        self._waiting: deque[tuple[Visit, Begun]] = deque()
        self._changed = threading.Condition()
        self._ended: BaseException | None = None
        self._is_closing = self._is_working = self._is_over = False
        self._prepared: tuple[list[tuple[Tensor, Tensor | None]], LogDensityAndGrad] | None = None
        self._seconds_per_call: float | None = None
        self.num_calls = 0
        """Calls of the network so far."""
        self.num_images = 0
        """Images that it was given in all of them."""

    @property
    def num_active(self) -> int:
        """Requests in the batch."""
        return len(self._guests)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._waiting)

    def submit(self, request: Request, listener: Listener | None = None) -> Visit:
        """Take a request; from any thread.

        Args:
            request: of one image.
            listener: is called with the frames, which `Visit.frames` then does not give.

        Raises:
            Busy: too many wait.
            UserError: it cannot be fulfilled.
            EngineEnded: the engine has ended.
        """
        begun = request.begin(self._served)
        if begun.num_energies > self.max_batch:
            raise UserError(
                "request",
                got=f"a sum of {begun.num_energies} energies",
                expected=f"at most {self.max_batch}, which the server gives the network at once",
                remedy="ask for fewer labels together",
            )
        visit = Visit(begun.num_gradients, listener)
        with self._changed:
            if self._is_over or self._is_closing:
                raise _ended(self._ended)
            self._forget_cancelled()
            if (number := self._num_without_room(begun)) > self.max_waiting:
                raise Busy(
                    "server",
                    got=f"{number - 1} requests that wait already",
                    expected=f"fewer than {self.max_waiting}",
                    remedy="try again later",
                )
            self._waiting.append((visit, begun))
            self._changed.notify()
        return visit

    @property
    def is_running(self) -> bool:
        """Whether it works in a thread, and has not ended."""
        return self._is_working and not self._is_over and not self._is_closing

    def outlook(self, visit: Visit) -> Outlook:
        """What a visit has to wait for; from any thread."""
        with self._changed:
            guests = [(guest.visit, guest.begun.num_energies) for guest in self._guests]
            waiting = [(waiting, begun.num_energies) for waiting, begun in self._waiting if not waiting.is_cancelled]
            seconds = self._seconds_per_call
        ahead, calls = calls_until(visit, guests, waiting, self.max_batch)
        return Outlook(ahead, None if seconds is None else calls * seconds)

    def step(self) -> bool:
        """Call the network once for everyone; whether there was anything to do. In one thread only.

        Guests that have left make room before it, and those who wait come in.
        """
        with self._changed:
            self._forget_cancelled()
            self._leave_out_cancelled()
            arrived = self._arrived()
        with fixed_sums():
            for guest in arrived:
                self._advance(guest, None)
            # A request may be over without any question.
            asking = [guest for guest in self._guests if guest.question is not None]
            if asking:
                began = time.perf_counter()
                for guest, answer in zip(asking, self._answers(asking), strict=True):
                    guest.visit.num_answered += 1
                    self._advance(guest, answer)
                self._note_call(time.perf_counter() - began)
        with self._changed:
            self._guests = [guest for guest in self._guests if guest.question is not None]
        return bool(arrived or asking)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Work in a thread while in the context; visits that are not over at its end are refused with an error."""
        self._is_working = True
        thread = threading.Thread(target=self._work, name="serving", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._is_closing = True
                self._changed.notify()
            thread.join()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closing or self._guests or self._waiting)
                    if self._is_closing:
                        return
                self.step()
        except BaseException as caught:
            error = caught
            raise
        finally:
            with self._changed:
                self._is_over, self._ended = True, error
                for visit in [guest.visit for guest in self._guests] + [visit for visit, _ in self._waiting]:
                    visit.tell(_ended(error))
                self._guests, self._waiting = [], deque()

    def _note_call(self, seconds: float) -> None:
        before = self._seconds_per_call
        self._seconds_per_call = seconds if before is None else before + _NEWS_WEIGHT * (seconds - before)

    def _num_without_room(self, last: Begun) -> int:
        """Requests that would have to wait if this one came too."""
        waiting = [begun.num_energies for _, begun in self._waiting] + [last.num_energies]
        totals = accumulate(waiting, initial=sum(guest.begun.num_energies for guest in self._guests))
        return sum(total > self.max_batch for total in totals)

    def _forget_cancelled(self) -> None:
        for visit, _ in self._waiting:
            if visit.is_cancelled:
                visit.tell(_cancelled())
        self._waiting = deque(entry for entry in self._waiting if not entry[0].is_cancelled)

    def _leave_out_cancelled(self) -> None:
        for guest in self._guests:
            if guest.visit.is_cancelled:
                guest.steps.close()
                guest.visit.tell(_cancelled())
        self._guests = [guest for guest in self._guests if not guest.visit.is_cancelled]

    def _arrived(self) -> list[_Guest]:
        """Those for whom there is room now, in their order, so that nobody waits for ever."""
        arrived: list[_Guest] = []
        taken = sum(guest.begun.num_energies for guest in self._guests)
        while self._waiting and taken + self._waiting[0][1].num_energies <= self.max_batch:
            visit, begun = self._waiting.popleft()
            arrived.append(_Guest(visit, begun, questions(begun.procedure, begun.view)))
            taken += begun.num_energies
        self._guests = self._guests + arrived
        return arrived

    def _advance(self, guest: _Guest, answer: Answer | None) -> None:
        """Go on to the next question of a request, or to its end."""
        guest.question = None
        try:
            while True:
                reached = guest.steps.send(answer)
                answer = None
                if isinstance(reached, Question):
                    guest.question = reached
                    return
                guest.visit.tell(self._frame(guest, reached))
        except StopIteration:
            return
        except UserError as error:
            # The fault of this request; the others go on.
            guest.visit.tell(error)

    def _frame(self, guest: _Guest, reached: Reached) -> Frame:
        check_finite(reached.x, f"image at level {reached.t}", remedy="use an earlier checkpoint, or less guidance")
        energy = None
        if reached.raw is not None:
            energy = -reached.raw * float(guest.begun.energy_scale[reached.t])
        return Frame(reached.t, to_uint8(reached.x)[0].cpu(), energy)

    def _answers(self, asking: list[_Guest]) -> list[Answer]:
        asked = [guest.question for guest in asking if guest.question is not None]
        raw, gradient = self._network_for(asked)(_joined([question.y for question in asked]))
        counts = [len(question.level) for question in asked]
        self.num_calls += 1
        self.num_images += sum(counts)
        return list(zip(raw.split(counts), gradient.split(counts), strict=True))

    def _network_for(self, asked: list[Question]) -> LogDensityAndGrad:
        """The network at the levels, and with the labels, of these questions; as before if these are as before."""
        wanted = [(question.level, question.condition) for question in asked]
        if self._prepared is not None and len(self._prepared[0]) == len(wanted):
            # By identity: a chain asks with the same levels and labels at every step.
            pairs = zip(self._prepared[0], wanted, strict=True)
            if all(old[0] is new[0] and old[1] is new[1] for old, new in pairs):
                return self._prepared[1]
        conditions = [question.condition for question in asked]
        size = next((condition.shape[1] for condition in conditions if condition is not None), None)
        condition = None
        if size is not None:
            # A label that is not given is the vector 0.
            none = torch.zeros(1, size, device=self._served.device)
            condition = _joined(
                [
                    none.expand(len(question.level), -1) if given is None else given
                    for question, given in zip(asked, conditions, strict=True)
                ]
            )
        network = self._engine.raw_at(_joined([question.level for question in asked]), condition)
        self._prepared = wanted, network
        return network


def _joined(parts: list[Tensor]) -> Tensor:
    """One behind the other; a single one as it is, whose memory stays in the order that it has alone."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _ended(cause: BaseException | None) -> EngineEnded:
    error = EngineEnded("the engine has ended" + ("" if cause is None else f" by {described(cause)}"))
    error.__cause__ = cause
    return error


def _cancelled() -> UserError:
    return UserError("visit", got="a call of cancel", expected="a visitor who waits", remedy="ask again")
