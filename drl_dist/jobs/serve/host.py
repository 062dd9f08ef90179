"""A model in this process, for many visitors at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from functools import partial

from torch import Tensor

from drl_dist.data.decode import read_images
from drl_dist.data.index import open_index
from drl_dist.data.shards import encode_png
from drl_dist.jobs.serve.inbox import Inbox
from drl_dist.jobs.serve.web.backend import About, News, Outlook, ScoredLevel, Shown
from drl_dist.library.model import Model
from drl_dist.likelihood.trust import model_warnings
from drl_dist.serving.engine import Busy, Frame, ServingEngine, Visit
from drl_dist.serving.requests import Request, SampleRequest, noise_range
from drl_dist.serving.scoring import Scorer

OUTLOOK_SECONDS = 0.5
"""Between two words on what is still to be waited for."""
MAX_SENT_PER_SECOND = 50
"""Of what is sent to visitors, by all chains of a replica together; levels that come faster are sent together."""
REFERENCE_IMAGES = 256
"""Images of the data that others are compared with."""


class ModelHost:
    """Runs the chains of visitors together; see `drl_dist.jobs.serve.web.backend.Backend`.

    Args:
        model: the model.
        name: that visitors are told.
        data: URL of image shards that log-densities are compared with.
        max_batch, max_waiting: as of `ServingEngine`.

    Raises:
        UserError: the data have another size than the model, or a number is too small.
    """

    def __init__(self, model: Model, *, name: str, data: str | None, max_batch: int, max_waiting: int) -> None:
        self._model, self._name = model, name
        self.engine = ServingEngine(model, max_batch=max_batch, max_waiting=max_waiting)
        self._scorer = Scorer(model)
        # One thread of their own: chains do not wait for them.
        self._scoring, self._num_scoring = ThreadPoolExecutor(1, "scoring"), 0
        self._index = None if data is None else open_index(data)
        if self._index is not None:
            config = model.experiment.model
            self._index.check_model(resolution=config.resolution, channels=config.channels)
        self._num_gradients, self._seconds_per_image = 0, 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Work while in the context; it begins with an image that nobody sees, which says how long one takes.

        Raises:
            UserError: the model makes images that are not finite.
        """
        with self.engine.running():
            # The first one also pays for what is made once.
            for _ in range(2):
                began = time.perf_counter()
                visit = self.engine.submit(SampleRequest())
                visit.image()
                self._num_gradients, self._seconds_per_image = visit.num_gradients, time.perf_counter() - began
            yield

    @property
    def is_running(self) -> bool:
        """Whether visitors are served."""
        return self.engine.is_running

    async def about(self) -> About:
        """See `Backend.about`."""
        model, experiment = self._model, self._model.experiment
        return About(
            name=self._name,
            step=model.step,
            image_shape=model.image_shape,
            num_levels=model.num_levels,
            num_gradients=self._num_gradients,
            label_kind=experiment.condition.kind,
            label_names=model.label_names,
            noise_range=noise_range(model),
            scored_levels=self._scorer.levels,
            seconds_per_image=self._seconds_per_image,
            warnings=model_warnings(experiment),
        )

    async def visit(self, request: Request, *, has_film: bool) -> AsyncGenerator[News, None]:
        """See `Backend.visit`."""
        async with aclosing(self.bundles(request, has_film)) as bundles:
            async for bundle in bundles:
                for part in bundle:
                    yield part

    async def bundles(self, request: Request, has_film: bool) -> AsyncGenerator[list[News], None]:
        """The news of `visit`, those of the same moment together."""
        inbox = Inbox[Frame | BaseException](_is_last, self._moment)

        def tell(part: Frame | BaseException) -> None:
            if has_film or _is_last(part):
                inbox.put(part)

        # Building a request's first noise takes a moment.
        taken = asyncio.ensure_future(asyncio.to_thread(self.engine.submit, request, tell))
        try:
            visit = await asyncio.shield(taken)
        except asyncio.CancelledError:
            # The thread goes on.
            taken.add_done_callback(_give_up)
            raise
        try:
            yield [Outlook(*self.engine.outlook(visit))]
            while True:
                parts = await inbox.bundle(OUTLOOK_SECONDS)
                if not parts:
                    yield [Outlook(*self.engine.outlook(visit))]
                    continue
                if frames := [part for part in parts if isinstance(part, Frame)]:
                    yield await asyncio.to_thread(_shown, frames)
                if isinstance(parts[-1], BaseException):
                    raise parts[-1]
                if _is_last(parts[-1]):
                    return
        finally:
            visit.cancel()

    def _moment(self) -> float:
        return self.engine.num_active / MAX_SENT_PER_SECOND

    async def scores(self, image: Tensor, seed: int, label: str | None) -> list[ScoredLevel]:
        """See `Backend.scores`."""
        if self._num_scoring >= self.engine.max_waiting + 1:
            raise Busy(
                "server",
                got=f"{self._num_scoring} pictures that wait to be scored",
                expected=f"at most {self.engine.max_waiting}",
                remedy="try again later",
            )
        self._num_scoring += 1
        try:
            score = partial(self._scorer.scores, image, seed=seed, label=label)
            found = await asyncio.get_running_loop().run_in_executor(self._scoring, score)
        finally:
            self._num_scoring -= 1
        return [ScoredLevel(score.level, score.noise_std, score.log_density, score.gradient) for score in found]

    async def reference(self) -> list[list[float]] | None:
        """See `Backend.reference`."""
        return await asyncio.get_running_loop().run_in_executor(self._scoring, self._reference)

    def _reference(self) -> list[list[float]] | None:
        if self._index is None:
            return None
        return self._scorer.log_densities(read_images(self._index, REFERENCE_IMAGES)).tolist()


def _give_up(taken: asyncio.Future[Visit]) -> None:
    """Cancel a visit whose visitor has left before it was known."""
    if taken.exception() is None:
        taken.result().cancel()


def _is_last(part: Frame | BaseException) -> bool:
    return isinstance(part, BaseException) or part.level == 0


def _shown(frames: list[Frame]) -> list[News]:
    return [Shown(frame.level, encode_png(frame.image.numpy()), frame.energy) for frame in frames]
