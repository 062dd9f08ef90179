"""Images per second of many visitors whose chains share the network's calls, against one visitor after the other.

    python -m benchmarks.serving [--model FOLDER | --preset digits] [--visitors 16 --rounds 3]

Every round times three ways, one behind the other, with the same images: ``Model.sample`` for one visitor after the
other, the serving engine for one after the other, and for all together. All visitors come at once. Prints a table of
medians over the rounds, with the median and the 95th percentile of the time until a visitor has his image, and as JSON
the ratios of each round, by wall and by processor time, and the greatest difference of a pixel between the first and
the last way. Without ``--model`` the weights are random, which takes the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from drl_dist.common.program import entry_point
from drl_dist.common.validation import whole_number
from drl_dist.config.presets import default_setting, preset
from drl_dist.library.load import load
from drl_dist.library.model import Model
from drl_dist.serving.engine import ServingEngine, Visit
from drl_dist.serving.requests import SampleRequest
from drl_dist.training.state import TrainState

LIBRARY, ALONE, TOGETHER = "library, one after the other", "engine, one after the other", "engine, together"


class Served(NamedTuple):
    """What all visitors got, and when."""

    seconds: float
    """Until the last one had his image."""
    processor_seconds: float
    waited: list[float]
    """Seconds until each had his image."""
    images: list[Tensor]


def main(words: Sequence[str] | None = None) -> int:
    """Parse, time, print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a trained model, as of drl_dist.load")
    parser.add_argument("--preset", default="digits", help="of a model with random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--visitors", type=whole_number, default=16)
    parser.add_argument("--batch", type=whole_number, default=16, help="of visitors together")
    parser.add_argument("--rounds", type=whole_number, default=3)
    given = parser.parse_args(words)
    model = load(given.model, device=given.device) if given.model else _untrained(given.preset, given.device)
    alone, together = (ServingEngine(model, max_batch=batch, max_waiting=given.visitors) for batch in (1, given.batch))
    ways: dict[str, Callable[[int], Served]] = {
        LIBRARY: partial(_sampled, model),
        ALONE: partial(_served, alone),
        TOGETHER: partial(_served, together),
    }
    for way in ways.values():
        way(min(2, given.visitors))
    rounds = [{name: way(given.visitors) for name, way in ways.items()} for _ in range(given.rounds)]
    print(f"| {given.model or given.preset}, {given.visitors} visitors | images/s | p50, s | p95, s |")
    print("|---|---|---|---|")
    for name in ways:
        found = [each[name] for each in rounds]
        row = (
            statistics.median(given.visitors / served.seconds for served in found),
            statistics.median(statistics.median(served.waited) for served in found),
            statistics.median(_percentile_95(served.waited) for served in found),
        )
        print(f"| {name} | " + " | ".join(f"{value:.3g}" for value in row) + " |")
    facts = {
        "ratios": {name: [each[name].seconds / each[TOGETHER].seconds for each in rounds] for name in (LIBRARY, ALONE)},
        "processor_ratios": {
            name: [each[name].processor_seconds / each[TOGETHER].processor_seconds for each in rounds]
            for name in (LIBRARY, ALONE)
        },
        "grey_levels_apart": max(
            int((one.int() - other.int()).abs().max())
            for each in rounds
            for one, other in zip(each[LIBRARY].images, each[TOGETHER].images, strict=True)
        ),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(facts))
    return 0


def _sampled(model: Model, visitors: int) -> Served:
    """All visitors, each once the one before has his image."""
    began, processor = time.perf_counter(), time.process_time()
    waited: list[float] = []
    images: list[Tensor] = []
    for seed in range(visitors):
        images.append(model.sample(1, seed=seed)[0])
        waited.append(time.perf_counter() - began)
    return Served(time.perf_counter() - began, time.process_time() - processor, waited, images)


def _served(engine: ServingEngine, visitors: int) -> Served:
    """All visitors, who come at once."""
    began, processor = time.perf_counter(), time.process_time()
    left: dict[int, Visit] = {seed: engine.submit(SampleRequest(seed=seed)) for seed in range(visitors)}
    waited, images = dict.fromkeys(left, 0.0), dict.fromkeys(left, torch.empty(0))
    while left:
        engine.step()
        for seed in [seed for seed, visit in left.items() if visit.is_over]:
            images[seed], waited[seed] = left.pop(seed).image(), time.perf_counter() - began
    seconds = time.perf_counter() - began
    return Served(seconds, time.process_time() - processor, list(waited.values()), list(images.values()))


def _percentile_95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def _untrained(name: str, device: str) -> Model:
    experiment = preset(name, default_setting(name))
    state = TrainState.create(experiment)
    return Model(experiment, state.ema.shadow, step=0, device=device)


if __name__ == "__main__":
    entry_point(main)
