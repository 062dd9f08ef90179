"""Addresses of the API."""

from __future__ import annotations

import asyncio
import bisect
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from drl_dist.data.shards import encode_png
from drl_dist.jobs.serve.web.answers import KINDS, answer, encoded
from drl_dist.jobs.serve.web.backend import About, Backend
from drl_dist.jobs.serve.web.gradients import gradient_png
from drl_dist.jobs.serve.web.schemas import (
    Asked,
    DenoiseAsked,
    Image,
    InpaintAsked,
    InterpolateQuery,
    Level,
    Limits,
    LogDensity,
    LogDensityAsked,
    Model,
    Picture,
    PictureAsked,
    Reference,
    Refusal,
    SampleQuery,
)
from drl_dist.jobs.serve.web.uploads import MAX_PIXELS, read_image, read_mask
from drl_dist.serving.requests import (
    MAX_CHAIN_STEPS,
    MAX_ROUNDS,
    DenoiseRequest,
    InpaintRequest,
    InterpolateRequest,
    SampleRequest,
)

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "Something that was asked for cannot be had."},
    503: {"model": Refusal, "description": "Too many wait; Retry-After says when to ask again."},
}
_IMAGE: dict[str, Any] = {"response_model": Image, "responses": {**_REFUSALS, **KINDS}}


class Routes:
    """Answers over a backend.

    Args:
        backend: runs the model.
        max_seconds: until an image is given up.
        max_body_bytes: of a request, to be told to visitors.
    """

    def __init__(self, backend: Backend, *, max_seconds: float, max_body_bytes: int) -> None:
        self._backend, self._max_seconds, self._max_body_bytes = backend, max_seconds, max_body_bytes
        self._about: About | None = None
        self._reference: Reference | None = None
        self._asking = asyncio.Lock()
        self.router = router = APIRouter(prefix="/api")
        router.get("/health", responses={503: {"model": Refusal}})(self.health)
        router.get("/model", response_model=Model)(self.model)
        router.get("/sample", **_IMAGE)(self.sample)
        router.get("/interpolate", **_IMAGE)(self.interpolate)
        router.post("/picture", response_model=Picture, responses=_REFUSALS)(self.picture)
        router.post("/inpaint", **_IMAGE)(self.inpaint)
        router.post("/denoise", **_IMAGE)(self.denoise)
        router.post("/log_density", response_model=LogDensity, responses=_REFUSALS)(self.log_density)
        router.get("/reference", response_model=Reference)(self.reference)

    async def health(self) -> Response:
        """Whether images can be had."""
        await self._backend.about()
        return JSONResponse({"status": "ok"})

    async def model(self) -> Model:
        """What is served."""
        about = await self._known()
        channels, height, width = about.image_shape
        smallest, largest = about.noise_range or (None, None)
        return Model(
            name=about.name,
            step=about.step,
            channels=channels,
            height=height,
            width=width,
            num_levels=about.num_levels,
            num_gradients=about.num_gradients,
            label_kind=about.label_kind,  # pyright: ignore[reportArgumentType]
            labels=list(about.label_names),
            min_noise_std=smallest,
            max_noise_std=largest,
            scored_levels=list(about.scored_levels),
            seconds_per_image=about.seconds_per_image,
            warnings=list(about.warnings),
            limits=Limits(
                body_bytes=self._max_body_bytes,
                picture_pixels=MAX_PIXELS,
                num_chain_steps=MAX_CHAIN_STEPS,
                num_rounds=MAX_ROUNDS,
            ),
        )

    async def sample(self, request: Request, asked: SampleQuery) -> Response:
        """A generated image: that of ``jobs/sample.py`` with this seed and number."""
        wanted = SampleRequest(**_common(asked), number=asked.number)
        return await answer(request, self._backend, wanted, self._max_seconds)

    async def interpolate(self, request: Request, asked: InterpolateQuery) -> Response:
        """An image between two generated ones."""
        wanted = InterpolateRequest(
            **_common(asked),
            first=asked.first,
            second=asked.second,
            second_seed=asked.second_seed,
            weight=asked.weight,
        )
        return await answer(request, self._backend, wanted, self._max_seconds)

    async def picture(self, asked: PictureAsked) -> Picture:
        """A picture as the model sees it."""
        shape = (await self._known()).image_shape
        image = await asyncio.to_thread(read_image, asked.image, shape, fit=asked.fit)
        return Picture(image=encoded(encode_png(image.numpy())))

    async def inpaint(self, request: Request, asked: InpaintAsked) -> Response:
        """An image whose white pixels of the mask are filled in; the others are kept."""
        shape = (await self._known()).image_shape
        wanted = InpaintRequest(
            **_common(asked),
            image=await asyncio.to_thread(read_image, asked.image, shape, fit=asked.fit),
            mask=await asyncio.to_thread(read_mask, asked.mask, shape),
            number=asked.number,
            num_rounds=asked.num_rounds,
        )
        return await answer(request, self._backend, wanted, self._max_seconds)

    async def denoise(self, request: Request, asked: DenoiseAsked) -> Response:
        """A draw of an image given the same with noise."""
        shape = (await self._known()).image_shape
        wanted = DenoiseRequest(
            **_common(asked),
            image=await asyncio.to_thread(read_image, asked.image, shape, fit=asked.fit),
            noise_std=asked.noise_std,
            number=asked.number,
        )
        return await answer(request, self._backend, wanted, self._max_seconds)

    async def log_density(self, asked: LogDensityAsked) -> LogDensity:
        """How probable an image is at each noise level, and where the gradient would change it."""
        about = await self._known()
        image = await asyncio.to_thread(read_image, asked.image, about.image_shape, fit=asked.fit)
        found = await self._backend.scores(image, asked.seed, asked.label)
        # Those of the data are f(y, t), to which f(y, t, c) of a label cannot be compared.
        data = None if asked.label is not None else (await self.reference()).log_densities
        levels: list[Level] = []
        for place, score in enumerate(found):
            png, scale = await asyncio.to_thread(gradient_png, score.gradient)
            share = None
            if data is not None:
                share = bisect.bisect_left(data[place], score.log_density) / len(data[place])
            levels.append(
                Level(
                    level=score.level,
                    noise_std=score.noise_std,
                    log_density=score.log_density,
                    share_below=share,
                    gradient=encoded(png),
                    gradient_scale=scale,
                )
            )
        return LogDensity(image=encoded(encode_png(image.numpy())), levels=levels, warnings=list(about.warnings))

    async def reference(self) -> Reference:
        """Log-densities of images of the data."""
        async with self._asking:
            if self._reference is None:
                about = self._about or await self._backend.about()
                found = await self._backend.reference()
                rows = None if found is None else [sorted(row) for row in found]
                self._reference = Reference(levels=list(about.scored_levels), log_densities=rows)
            return self._reference

    async def _known(self) -> About:
        if self._about is None:
            self._about = await self._backend.about()
        return self._about


def _common(asked: Asked) -> dict[str, Any]:
    return {
        "seed": asked.seed,
        "label": asked.label,
        "compose": asked.compose,
        "guidance": asked.guidance,
        "num_chain_steps": asked.num_chain_steps,
    }
