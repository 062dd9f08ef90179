"""Visitors by the dozen, killed processes and hostile requests, against a running ``jobs/serve.py``.

    python -m benchmarks.serving_load [--preset digits] [--visitors 50] [--rounds 5] [--parts company ...] [--json]

Starts a Ray head and ``jobs/serve.py`` on 127.0.0.1, with random weights unless ``--model`` names a folder, and a
process for all visitors. Prints a table for each part, or with ``--json`` everything as one object. Takes about ten
minutes on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving_load import hostile, parts, throughput
from benchmarks.serving_load.report import tables
from benchmarks.serving_load.server import ServeJob
from drl_dist.common.program import entry_point
from drl_dist.common.validation import whole_number
from drl_dist.config.presets import default_setting, preset
from drl_dist.library.load import load
from drl_dist.library.model import Model
from drl_dist.localhost import RayHead, end_on_signals
from drl_dist.training.state import TrainState

PARTS = ("company", "rates", "long_rates", "leavers", "replica", "front", "hostile")
BATCH = 16


def main(words: Sequence[str] | None = None) -> int:
    """Parse, serve, visit, print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving_load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a folder that drl_dist.load knows")
    parser.add_argument("--preset", default="digits", help="of a model with random weights")
    parser.add_argument("--visitors", type=whole_number, default=50)
    parser.add_argument(
        "--chain-steps",
        type=whole_number,
        default=30,
        help="of long chains: the second rates, and images while processes are killed",
    )
    parser.add_argument("--rounds", type=whole_number, default=5)
    parser.add_argument("--processes", type=whole_number, default=3, help="of jobs/sample.py")
    parser.add_argument("--replicas", type=whole_number, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    end_on_signals()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="serving-") as name:
        folder = Path(name)
        place = given.model.absolute() if given.model else _untrained(given.preset, folder / "model")
        model = load(place)
        log = folder / "serve.log"
        with RayHead(num_cpus=2) as head, ServeJob(head, place, log, _options(given)) as server:
            before = server.memory()
            found = {part: work() for part, work in _works(given, server, model, folder).items() if part in given.parts}
            found["memory"] = {"before": before, "after": server.memory()}
            found["load"] = os.getloadavg()[0]
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n\n".join(tables(found)))
    return 0


def _options(given: argparse.Namespace) -> list[str]:
    return [f"--max-batch={BATCH}", f"--min-replicas={given.replicas}", f"--max-replicas={given.replicas}"]


def _works(given: argparse.Namespace, server: ServeJob, model: Model, folder: Path) -> dict[str, Callable[[], Any]]:
    def said(part: str, work: Callable[[], Any]) -> Callable[[], Any]:
        def tell() -> Any:
            print(f"{part} ...", file=sys.stderr, flush=True)
            return work()

        return tell

    def lost(role: str) -> dict[str, Any]:
        kill = partial(server.kill, role)
        return asdict(parts.loss(server, model, given.visitors, given.chain_steps, kill))

    works: dict[str, Callable[[], Any]] = {
        "company": lambda: parts.company(server, model, given.visitors),
        "rates": lambda: throughput.rates(
            server, model, folder, batch=BATCH, each=4, rounds=given.rounds, processes=given.processes
        ),
        "long_rates": lambda: throughput.rates(
            server,
            model,
            folder,
            batch=BATCH,
            each=2,
            rounds=given.rounds,
            processes=0,
            num_chain_steps=given.chain_steps,
        ),
        "leavers": lambda: parts.leavers(server, 30),
        "replica": lambda: lost("replica"),
        "front": lambda: lost("front"),
        "hostile": lambda: {name: _attacked(server, sends) for name, sends in hostile.attacks().items()},
    }
    return {name: said(name, work) for name, work in works.items()}


def _attacked(server: ServeJob, sends: list[hostile.Send]) -> dict[str, Any]:
    return parts.with_memory(server, lambda: asyncio.run(hostile.attack(server.address, sends)))


def _untrained(name: str, folder: Path) -> Path:
    experiment = preset(name, default_setting(name))
    Model(experiment, TrainState.create(experiment).ema.shadow, step=0).save(folder)
    return folder


if __name__ == "__main__":
    entry_point(main)
