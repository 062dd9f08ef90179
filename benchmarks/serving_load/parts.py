"""What is done to the server, and what came of it."""

from __future__ import annotations

import asyncio
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import aiohttp
from torch import Tensor

from benchmarks.serving_load.server import ServeJob, wait_until
from benchmarks.serving_load.visitors import EVENTS, Watched, crowd, session, watch
from drl_dist.library.model import Model

EXPORT_SECONDS = 60.0
"""Within which Prometheus can read what replicas say every 5 s, and Ray passes on every 10 s."""


@dataclass(frozen=True)
class Compared:
    """What visitors saw, against what they should see."""

    visitors: int
    lost: int
    """Without an image."""
    wrong: int
    """With another image than that of their seed, or with a level missing, twice or out of order."""
    pixels: int
    """Of all images."""
    pixels_one_apart: int
    """By one grey level, as rounding in company may have it."""
    most_apart: int
    """Grey levels, of any pixel."""
    p50: float
    """Seconds until a visitor had the image."""
    p95: float
    errors: list[str]


@functools.cache
def expected_images(model: Model, seeds: range, num_chain_steps: int | None = None) -> list[Tensor]:
    """Of `Model.sample`, each made alone: uint8 (C, H, W)."""
    return [model.sample(1, seed=seed, num_chain_steps=num_chain_steps)[0] for seed in seeds]


def compared(seen: Sequence[Watched], expected: Sequence[Tensor], num_levels: int) -> Compared:
    """Compare what visitors saw with the images of their seeds."""
    wrong, pixels, apart, most = 0, 0, 0, 0
    for watched, image in zip(seen, expected, strict=True):
        if watched.image is None:
            continue
        differences = (watched.image.int() - image.int()).abs()
        is_right = watched.levels == list(range(num_levels, -1, -1)) and int(differences.max()) <= 1
        wrong += not is_right
        pixels += image.numel()
        apart += int((differences == 1).sum())
        most = max(most, int(differences.max()))
    waited = [watched.seconds for watched in seen]
    return Compared(
        visitors=len(seen),
        lost=sum(watched.image is None for watched in seen),
        wrong=wrong,
        pixels=pixels,
        pixels_one_apart=apart,
        most_apart=most,
        p50=statistics.median(waited),
        p95=percentile_95(waited),
        errors=sorted({watched.error for watched in seen if watched.error is not None}),
    )


def percentile_95(values: Sequence[float]) -> float:
    """The 95th percentile; of one value, that."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def company(server: ServeJob, model: Model, visitors: int) -> dict[str, Any]:
    """All at once, each with a seed of its own."""
    seeds = range(visitors)
    expected = expected_images(model, seeds)
    return asdict(compared(asyncio.run(crowd(server.address, seeds)), expected, model.num_levels))


@dataclass(frozen=True)
class Loss:
    """A killed process, as its visitors saw it."""

    compared: Compared
    """Of those who were there."""
    told: int
    """Of whom so many were told that their image is begun anew."""
    longest_pause: float
    """Seconds without a frame, of the visitor who waited longest."""
    longest_silence: float
    """Seconds without any event."""
    recovery: float
    """Seconds from the kill to the next frame of anyone."""
    asked_again: Compared | None = None
    """Of those who lost their streams, and asked again until they had an image."""
    tries: int = 0
    """Most questions of one of these."""


def loss(server: ServeJob, model: Model, visitors: int, num_chain_steps: int, kill: Callable[[], object]) -> Loss:
    """Let visitors come at once, and kill something when a third of the frames have come."""
    expected = expected_images(model, range(visitors), num_chain_steps)
    query, third = f"&num_chain_steps={num_chain_steps}", visitors * (model.num_levels + 1) // 3
    return asyncio.run(_loss(server, query, expected, third, model.num_levels, kill))


async def _loss(
    server: ServeJob,
    query: str,
    expected: list[Tensor],
    num_frames: int,
    num_levels: int,
    kill: Callable[[], object],
) -> Loss:
    seen = [Watched(seed) for seed in range(len(expected))]
    async with session() as client:
        tasks = [asyncio.create_task(watch(client, server.address, watched, query)) for watched in seen]
        while sum(len(watched.levels) for watched in seen) < num_frames:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(kill)
        killed = time.monotonic()
        await asyncio.gather(*tasks)
        lost = [watched for watched in seen if watched.image is None]
        again = await asyncio.gather(*(_ask_again(client, server.address, watched.seed, query) for watched in lost))
    everyone = [*seen, *(last for last, _ in again)]
    after = [at for watched in everyone for at in watched.frame_times if at > killed]
    silences = [max((late - early for early, late in pairwise(watched.times)), default=0.0) for watched in seen]
    return Loss(
        compared=compared(seen, expected, num_levels),
        told=sum(watched.num_again > 0 for watched in seen),
        longest_pause=max(watched.longest_pause for watched in seen),
        longest_silence=max(silences),
        recovery=min(after) - killed,
        asked_again=compared([last for last, _ in again], [expected[last.seed] for last, _ in again], num_levels)
        if again
        else None,
        tries=max((tries for _, tries in again), default=0),
    )


async def _ask_again(client: aiohttp.ClientSession, address: str, seed: int, query: str) -> tuple[Watched, int]:
    """Ask until there is an image, as a program would that knows that servers may be away for a while."""
    tries = 0
    deadline = time.monotonic() + 120
    while True:
        tries += 1
        watched = Watched(seed)
        await watch(client, address, watched, query)
        if watched.image is not None or time.monotonic() > deadline:
            return watched, tries
        await asyncio.sleep(1)


def leavers(server: ServeJob, visitors: int) -> dict[str, Any]:
    """Streams of long chains, each left as soon as it has begun, and then one visitor who stays.

    Raises:
        TimeoutError: replicas go on with what nobody waits for.
    """
    before = server.visits("left")
    asyncio.run(_leave(server.address, visitors))
    (stays,) = asyncio.run(crowd(server.address, [0]))
    wait_until(lambda: server.visits("left") == before + visitors, EXPORT_SECONDS)
    wait_until(lambda: not server.metric("ray_drl_serve_active"), EXPORT_SECONDS)
    return {
        "visitors": visitors,
        "next_image_seconds": stays.seconds,
        "next_error": stays.error,
        "active": server.metric("ray_drl_serve_active"),
        "waiting": server.metric("ray_drl_serve_waiting"),
    }


async def _leave(address: str, visitors: int) -> None:
    async with session() as client:

        async def leave(seed: int) -> None:
            url = f"{address}/api/sample?seed={seed}&num_chain_steps=1000"
            async with client.get(url, headers=EVENTS) as response:
                await response.content.readany()
                response.close()

        await asyncio.gather(*(leave(seed) for seed in range(visitors)))


def with_memory(server: ServeJob, work: Callable[[], Any]) -> dict[str, Any]:
    """MiB of the server's processes before some work, at most during it, and after it."""
    before = server.memory()
    server.forget_peak_memory()
    answer = work()
    return {"answers": answer, "before": before, "peak": server.peak_memory(), "after": server.memory()}
