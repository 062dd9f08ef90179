"""Visitors over HTTP, all in one process, each with a stream of events."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp
import numpy as np
import torch
from PIL import Image
from torch import Tensor

SECONDS = 300.0
"""Until a visitor gives up."""
EVENTS, PNG = {"Accept": "text/event-stream"}, {"Accept": "image/png"}


@dataclass
class Watched:
    """What a visitor has seen."""

    seed: int
    levels: list[int] = field(default_factory=list[int])
    times: list[float] = field(default_factory=list[float])
    """When anything came, by `time.monotonic`: frames and news on the queue."""
    frame_times: list[float] = field(default_factory=list[float])
    image: Tensor | None = None
    """uint8 (C, H, W), at level 0."""
    num_again: int = 0
    """Processes lost meanwhile."""
    error: str | None = None
    """Why there is no image."""
    seconds: float = 0.0
    """From the request to the end."""

    @property
    def longest_pause(self) -> float:
        """Seconds without a frame, at most."""
        return max((after - before for before, after in pairwise(self.frame_times)), default=0.0)


async def crowd(address: str, seeds: Sequence[int], query: str = "") -> list[Watched]:
    """One visitor for each seed, all at once.

    Args:
        address: of the page.
        seeds: of the images.
        query: more parameters, such as ``&num_chain_steps=300``.
    """
    found = [Watched(seed) for seed in seeds]
    async with session() as client:
        await asyncio.gather(*(watch(client, address, watched, query) for watched in found))
    return found


def session() -> aiohttp.ClientSession:
    """A client for any number of visitors."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=SECONDS), trust_env=False
    )


async def fetch(client: aiohttp.ClientSession, address: str, watched: Watched, query: str = "") -> None:
    """Wait for an image alone."""
    began = time.monotonic()
    async with client.get(f"{address}/api/sample?seed={watched.seed}{query}", headers=PNG) as response:
        body = await response.read()
        if response.status == 200:
            watched.image = decoded(body)
        else:
            watched.error = f"{response.status} {body[:200]!r}"
    watched.seconds = time.monotonic() - began


async def watch(client: aiohttp.ClientSession, address: str, watched: Watched, query: str = "") -> None:
    """Look at an image until it is done, or fails."""
    began = time.monotonic()
    try:
        async with client.get(f"{address}/api/sample?seed={watched.seed}{query}", headers=EVENTS) as response:
            if response.status != 200:
                watched.error = f"{response.status} {(await response.text())[:200]}"
                return
            async for name, data in events(response):
                _note(watched, name, data)
        if watched.image is None and watched.error is None:
            watched.error = "the stream ended before the image"
    except (aiohttp.ClientError, TimeoutError) as error:
        watched.error = f"{type(error).__name__}: {error}"
    finally:
        watched.seconds = time.monotonic() - began


Ask = Callable[[aiohttp.ClientSession, str, Watched, str], Awaitable[None]]
"""`fetch` or `watch`."""


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    """Names and data of a stream of events."""
    name = ""
    async for line in response.content:
        key, _, value = line.decode().rstrip("\n").partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


def decoded(png: bytes) -> Tensor:
    """A PNG as uint8 (C, H, W)."""
    with Image.open(io.BytesIO(png)) as picture:
        pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _note(watched: Watched, name: str, data: Any) -> None:
    now = time.monotonic()
    watched.times.append(now)
    if name == "frame":
        watched.frame_times.append(now)
        watched.levels.append(data["level"])
        if data["level"] == 0:
            watched.image = decoded(base64.b64decode(data["image"]))
    elif name == "again":
        watched.num_again += 1
    elif name == "error":
        watched.error = data["error"]
