"""Images per second over HTTP, against one image after the other."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving_load.parts import percentile_95
from benchmarks.serving_load.server import ROOT, ServeJob
from benchmarks.serving_load.visitors import Ask, Watched, fetch, session, watch
from drl_dist.library.model import Model

JOB, LIBRARY, FILM_ALONE, FILM_TOGETHER, HTTP_ALONE, HTTP_TOGETHER = (
    "`jobs/sample.py`, one image, a whole process",
    "`Model.sample`, one after the other",
    "films over HTTP, one after the other",
    "films over HTTP, all together",
    "images over HTTP, one after the other",
    "images over HTTP, all together",
)


@dataclass(frozen=True)
class Rate:
    """A number of images."""

    images: int
    seconds: float
    waited: list[float]
    """Seconds that each one took, from its question."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


def rates(
    server: ServeJob,
    model: Model,
    out: Path,
    *,
    batch: int,
    each: int,
    rounds: int,
    processes: int,
    num_chain_steps: int | None = None,
) -> dict[str, Any]:
    """Time the ways in turns, and compare them inside each round.

    Args:
        server: that serves the model.
        model: the same, here.
        out: folder for what ``jobs/sample.py`` writes.
        batch: visitors at once.
        each: images that each of them asks for, one after the other.
        rounds: repetitions.
        processes: of ``jobs/sample.py``, which takes long.
        num_chain_steps: of every level, if others than the model's own.
    """
    query = "" if num_chain_steps is None else f"&num_chain_steps={num_chain_steps}"
    ways: dict[str, Callable[[], Rate]] = {
        LIBRARY: lambda: _library(model, batch, num_chain_steps),
        FILM_ALONE: lambda: asyncio.run(_over_http(watch, server.address, 1, batch, query)),
        FILM_TOGETHER: lambda: asyncio.run(_over_http(watch, server.address, batch, each, query)),
        HTTP_ALONE: lambda: asyncio.run(_over_http(fetch, server.address, 1, batch, query)),
        HTTP_TOGETHER: lambda: asyncio.run(_over_http(fetch, server.address, batch, each, query)),
    }
    for way in ways.values():
        way()
    found = [{name: way() for name, way in ways.items()} for _ in range(rounds)]
    of_job = [_job(server, out / f"samples-{number}") for number in range(processes)]
    table = {name: _summary([one[name] for one in found]) for name in ways}
    if of_job:
        table[JOB] = _summary(of_job)
    ratios = {
        f"{together}, against {alone}": _spread([one[together].rate / one[alone].rate for one in found])
        for together, alone in (
            (FILM_TOGETHER, LIBRARY),
            (FILM_TOGETHER, FILM_ALONE),
            (HTTP_TOGETHER, LIBRARY),
            (HTTP_TOGETHER, HTTP_ALONE),
        )
    }
    return {"ways": table, "ratios": ratios, "rounds": rounds, "batch": batch, "load": os.getloadavg()[0]}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _summary(rates: list[Rate]) -> dict[str, Any]:
    return {
        "images_per_second": _spread([rate.rate for rate in rates]),
        "p50": statistics.median(seconds for rate in rates for seconds in rate.waited),
        "p95": percentile_95([seconds for rate in rates for seconds in rate.waited]),
    }


def _library(model: Model, images: int, num_chain_steps: int | None) -> Rate:
    waited: list[float] = []
    for seed in range(images):
        began = time.perf_counter()
        model.sample(1, seed=seed, num_chain_steps=num_chain_steps)
        waited.append(time.perf_counter() - began)
    return Rate(images, sum(waited), waited)


async def _over_http(ask: Ask, address: str, visitors: int, each: int, query: str) -> Rate:
    """Each visitor asks for his next image when he has one."""
    waited: list[float] = []

    async def visit(first: int) -> None:
        for seed in range(first, first + each):
            watched = Watched(seed)
            await ask(client, address, watched, query)
            if watched.image is None:
                raise RuntimeError(watched.error)
            waited.append(watched.seconds)

    async with session() as client:
        began = time.perf_counter()
        await asyncio.gather(*(visit(number * each) for number in range(visitors)))
        return Rate(visitors * each, time.perf_counter() - began, waited)


def _job(server: ServeJob, out: Path) -> Rate:
    """On a Ray of its own, beside the server that has nothing to do."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    words = [f"--model={server.model}", "--num-images=1", f"--out={out}"]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "jobs/sample.py", *words],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.perf_counter() - began
    return Rate(1, seconds, [seconds])
