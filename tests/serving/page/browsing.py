"""What tests of the page do: hold films, kill the server, paint, drop files and press keys, and look at pixels."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from torch import Tensor

from drl_dist.jobs.serve.host import ModelHost
from drl_dist.jobs.serve.web.access import Access
from drl_dist.jobs.serve.web.backend import About, News, ScoredLevel, Shown
from drl_dist.serving.requests import InpaintRequest, Request, SampleRequest
from tests.helpers.served import AppServer
from tests.support import wait_for


class HeldBackend:
    """A backend whose films can be held after some frames."""

    def __init__(self, host: ModelHost) -> None:
        self.host = host
        self.held_after: int | None = None
        """Frames after which films stop until this is None."""
        self.visits: list[Request] = []
        """Requests so far."""

    async def about(self) -> About:
        """See `Backend.about`."""
        return await self.host.about()

    async def visit(self, request: Request, *, has_film: bool) -> AsyncGenerator[News, None]:
        """See `Backend.visit`."""
        self.visits.append(request)
        num_shown = 0
        async with aclosing(self.host.visit(request, has_film=has_film)) as news:
            async for part in news:
                while isinstance(part, Shown) and num_shown == self.held_after:
                    await asyncio.sleep(0.01)
                num_shown += isinstance(part, Shown)
                yield part

    async def scores(self, image: Tensor, seed: int, label: str | None) -> list[ScoredLevel]:
        """See `Backend.scores`."""
        return await self.host.scores(image, seed, label)

    async def reference(self) -> list[list[float]] | None:
        """See `Backend.reference`."""
        return await self.host.reference()


class PageServer(AppServer):
    """The page over a backend that can be held."""

    def __init__(self, backend: HeldBackend, access: Access | None = None) -> None:
        super().__init__(backend, access)
        self.backend = backend


@contextmanager
def page_of(host: ModelHost, access: Access | None = None) -> Iterator[PageServer]:
    """The page over a host that runs."""
    server = PageServer(HeldBackend(host), access)
    server.start()
    try:
        yield server
    finally:
        server.backend.held_after = None
        server.kill()


def grey(canvas: Locator) -> Tensor:
    """The grey image on a canvas, uint8 (1, H, W)."""
    found = canvas.evaluate(
        """canvas => [canvas.width, canvas.height,
        Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)]"""
    )
    width, height, values = found
    pixels = np.array(values, dtype=np.uint8).reshape(height, width, 4)
    assert (pixels[..., :1] == pixels[..., :3]).all(), "an image in colour"
    return torch.from_numpy(pixels[None, ..., 0].copy())


def film_of(page: Page, panel: str = "#sample") -> Locator:
    return page.locator(f"{panel} .film canvas")


def wait_for_film(page: Page, panel: str = "#sample") -> None:
    """Until the last frame is shown."""
    expect(film_of(page, panel)).to_have_attribute("aria-label", "The image")
    expect(page.locator(f"{panel} .film .working")).to_be_hidden()


def sample(host: ModelHost, seed: int) -> Tensor:
    return host.engine.submit(SampleRequest(seed=seed)).image()


def expect_image(canvas: Locator, image: Tensor, tolerance: int = 0) -> None:
    assert int((grey(canvas).int() - image.int()).abs().max()) <= tolerance


def expect_on_the_screen(canvas: Locator, image: Tensor) -> None:
    """What a person sees are the image's pixels, large and with sharp edges."""
    canvas.scroll_into_view_if_needed()
    with Image.open(io.BytesIO(canvas.screenshot())) as shot:
        size = shot.width / image.shape[2]
        for row in range(image.shape[1]):
            for column in range(image.shape[2]):
                place = (int((column + 0.15) * size), int((row + 0.85) * size))
                assert abs(shot.convert("L").getpixel(place) - int(image[0, row, column])) <= 2


def on_screen(easel: Locator, place: tuple[float, float]) -> tuple[float, float]:
    """Of a place in pixels of an 8x8 image."""
    box = easel.bounding_box()
    assert box is not None
    return box["x"] + place[0] * box["width"] / 8, box["y"] + place[1] * box["height"] / 8


def drag(page: Page, easel: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    easel.scroll_into_view_if_needed()
    page.mouse.move(*on_screen(easel, start))
    page.mouse.down()
    page.mouse.move(*on_screen(easel, end), steps=3)
    page.mouse.up()


def drop(page: Page, selector: str, name: str, data: bytes) -> None:
    """Drop a file, as a browser tells it."""
    files = page.evaluate_handle(
        """([name, data]) => {
            const files = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            files.items.add(new File([bytes], name, { type: "image/png" }));
            return files;
        }""",
        [name, base64.b64encode(data).decode()],
    )
    for kind in ("dragenter", "dragover", "drop"):
        page.dispatch_event(selector, kind, {"dataTransfer": files})


def press_until(page: Page, key: str, wanted: str) -> None:
    """Until what is wanted, by id, name or text, has the focus; on the way the focus can always be seen."""
    for _ in range(40):
        page.keyboard.press(key)
        names, outline = page.evaluate(
            """() => {
                const at = document.activeElement;
                const framed = at.matches(".choices input, .drop input") ? at.parentElement : at;
                return [[at.id, at.name, at.textContent, at.getAttribute("aria-label") ?? ""],
                        getComputedStyle(framed).outlineStyle];
            }"""
        )
        assert outline == "solid", f"no frame around {names}"
        if any(name and name.startswith(wanted) for name in names):
            return
    raise AssertionError(f"{wanted} is not reached")


def expect_completions(page: Page, server: PageServer, mask: Tensor) -> None:
    """Four completions under a mask, each that of its seed, with the other pixels as they were."""
    host = server.backend.host
    picture = sample(host, 0)

    def asked() -> list[InpaintRequest]:
        found = [visit for visit in server.backend.visits if isinstance(visit, InpaintRequest)]
        return [visit for visit in found if torch.equal(visit.mask, mask)]

    wait_for(lambda: len(asked()) >= 4, 30)
    canvases = page.locator("#fill .completions canvas")
    expect(canvases).to_have_count(4)
    expect(page.locator("#fill .working")).to_be_hidden()
    for seed, canvas in enumerate(canvases.all()):
        expect(canvas).to_have_attribute("aria-label", "The image")
        image = grey(canvas)
        assert torch.equal(image[:, ~mask], picture[:, ~mask])
        assert not torch.equal(image[:, mask], picture[:, mask])
        # Those who are served together may differ by a rounding.
        expected = host.engine.submit(InpaintRequest(seed=seed, image=picture, mask=mask)).image()
        expect_image(canvas, expected, tolerance=1)
