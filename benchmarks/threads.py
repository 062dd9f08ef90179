"""How fast training steps are with threads that spin as they wait, for long, shortly or not, alone and on busy cores.

    python -m benchmarks.threads [--preset digits --busy 2 --seconds 6]

Each way is a process of its own, for how threads wait is settled when torch is imported. For the second column as many
processes as ``--busy`` says do nothing but count meanwhile. Prints recovery steps per second.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from drl_dist.common.program import entry_point
from drl_dist.common.validation import whole_number

UNSET = "unset"
WAYS: dict[str, dict[str, str]] = {
    "spinning (torch's default)": {"OMP_WAIT_POLICY": UNSET},
    "spinning shortly (the package's default)": {},
    "not spinning (OMP_WAIT_POLICY=PASSIVE)": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread (OMP_NUM_THREADS=1)": {"OMP_NUM_THREADS": "1"},
}
"""Variables of each way."""


def main(words: Sequence[str] | None = None) -> int:
    """Parse, time, print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.threads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--busy", type=whole_number, default=os.cpu_count() or 1, help="busy processes beside")
    parser.add_argument("--seconds", type=whole_number, default=6, help="of each measurement")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.measure:
        print(rate(given.preset, given.seconds))
        return 0
    print(
        f"| recovery steps of {given.preset} per second | alone | beside {given.busy} busy processes |\n|---|---|---|"
    )
    for name, variables in WAYS.items():
        alone, busy = (_measured(given, variables, beside) for beside in (0, given.busy))
        print(f"| {name} | {alone:.1f} | {busy:.1f} |", flush=True)
    return 0


def rate(name: str, seconds: int) -> float:
    """Steps per second in this process, the first one left out."""
    if os.environ.get("OMP_WAIT_POLICY") == UNSET:
        # Here, for the package sets it where it is not given.
        del os.environ["OMP_WAIT_POLICY"]
    import torch

    from drl_dist.common.batch import Batch
    from drl_dist.config.presets import default_setting, preset
    from drl_dist.config.tree import EngineConfig
    from drl_dist.training.state import TrainState
    from drl_dist.training.step import TrainStep

    experiment = preset(name, default_setting(name))
    optim = dataclasses.replace(experiment.optim, first_objective=None, first_objective_steps=0)
    experiment = dataclasses.replace(experiment, optim=optim)
    model, count = experiment.model, experiment.train.batch_size
    images = torch.zeros(count, model.channels, model.resolution, model.resolution, dtype=torch.uint8)
    step, made = TrainStep(TrainState.create(experiment), experiment, EngineConfig()), 0
    step(Batch(images, torch.arange(count)))
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        made += 1
        step(Batch(images, torch.arange(count) + made * count))
    return made / (time.perf_counter() - began)


def _measured(given: argparse.Namespace, variables: dict[str, str], beside: int) -> float:
    """The rate of a process of its own, with so many busy ones beside it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= variables
    command = [sys.executable, "-m", "benchmarks.threads", "--measure", "--preset", given.preset]
    with ExitStack() as stack:
        for _ in range(beside):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(busy.kill)
        done = subprocess.run(
            [*command, "--seconds", str(given.seconds)], env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
    return float(done.stdout)


if __name__ == "__main__":
    entry_point(main)
