"""Images per second of many visitors whose chains share the network's calls, against one visitor after the other.

    python -m benchmarks.serving [--model FOLDER | --preset digits] [--visitors 16 --rounds 3]

Every round times both, one behind the other, with the same images: all visitors come at once, and each is served alone
once the one before has his image. Prints a table of medians over the rounds, with the median and the 95th percentile of
the time until a visitor has his image, counted from when all of them came; and the greatest difference of a pixel
between the two. Without ``--model`` the weights are random, which takes the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence

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

Served = tuple[float, list[float], list[Tensor]]
"""Seconds of all, of each visitor, and their images."""


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
    engines = {"one after the other": ServingEngine(model, max_batch=1, max_waiting=given.visitors)}
    engines["together"] = ServingEngine(model, max_batch=given.batch, max_waiting=given.visitors)
    for engine in engines.values():
        _served(engine, min(2, given.visitors))
    rounds = [{name: _served(engine, given.visitors) for name, engine in engines.items()} for _ in range(given.rounds)]
    print(
        f"| {given.model or given.preset}, {given.visitors} visitors | images/s | p50, s | p95, s |\n|---|---|---|---|"
    )
    rows: dict[str, dict[str, float]] = {}
    for name in engines:
        rows[name] = {
            "images_per_second": _median(lambda served: given.visitors / served[0], rounds, name),
            "p50_seconds": _median(lambda served: statistics.median(served[1]), rounds, name),
            "p95_seconds": _median(lambda served: _percentile_95(served[1]), rounds, name),
        }
        print(f"| {name} | " + " | ".join(f"{value:.3g}" for value in rows[name].values()) + " |")
    ratios = [each["one after the other"][0] / each["together"][0] for each in rounds]
    difference = max(
        int((one.int() - other.int()).abs().max())
        for each in rounds
        for one, other in zip(each["one after the other"][2], each["together"][2], strict=True)
    )
    facts = {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "grey_levels_apart": difference,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps({**rows, **facts}))
    return 0


def _served(engine: ServingEngine, visitors: int) -> Served:
    """All visitors, who come at once."""
    began = time.perf_counter()
    left: dict[int, Visit] = {seed: engine.submit(SampleRequest(seed=seed)) for seed in range(visitors)}
    seconds, images = dict.fromkeys(left, 0.0), dict.fromkeys(left, torch.empty(0))
    while left:
        engine.step()
        for seed in [seed for seed, visit in left.items() if visit.is_over]:
            images[seed], seconds[seed] = left.pop(seed).image(), time.perf_counter() - began
    return time.perf_counter() - began, list(seconds.values()), list(images.values())


def _median(of: Callable[[Served], float], rounds: Sequence[dict[str, Served]], name: str) -> float:
    return statistics.median(of(each[name]) for each in rounds)


def _percentile_95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def _untrained(name: str, device: str) -> Model:
    experiment = preset(name, default_setting(name))
    state = TrainState.create(experiment)
    return Model(experiment, state.ema.shadow, step=0, device=device)


if __name__ == "__main__":
    entry_point(main)
