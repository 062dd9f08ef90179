"""What labels cost a training step: the same steps with them and without, in turns, in one run.

    python -m benchmarks.labels [--presets digits,fashion_mnist --rounds 30 --threads 1]

Both kinds of step of the default setting are timed, score matching and recovery, each with the ten classes that the
data of these presets have. Prints medians, in seconds of one step, and their ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence

import torch

from drl_dist.common.batch import Batch
from drl_dist.common.errors import UserError
from drl_dist.common.program import entry_point
from drl_dist.common.validation import whole_number
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.presets import default_setting, preset
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep

LABELS = ConditionConfig(kind="class", names=tuple("0123456789"))


def main(words: Sequence[str] | None = None) -> int:
    """Parse, time, print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.labels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", default="digits,fashion_mnist", help="names, separated by commas")
    parser.add_argument("--rounds", type=whole_number, default=30, help="steps of each kind")
    parser.add_argument("--threads", type=whole_number, default=1, help="of this process")
    given = parser.parse_args(words)
    if given.rounds < 1:
        raise UserError("--rounds", got=given.rounds, expected="at least 1", remedy="correct it")
    torch.set_num_threads(given.threads)
    print("| preset | objective | without labels | with labels | ratio |\n|---|---|---|---|---|")
    for name in given.presets.split(","):
        experiment = preset(name, default_setting(name))
        for objective in experiment.optim.objectives:
            optim = dataclasses.replace(
                experiment.optim, objective=objective, first_objective=None, first_objective_steps=0
            )
            plain, labelled = medians(dataclasses.replace(experiment, optim=optim), given.rounds)
            print(f"| {name} | {objective} | {plain:.4f} | {labelled:.4f} | {labelled / plain:.3f} |", flush=True)
    return 0


def medians(experiment: Experiment, rounds: int) -> tuple[float, float]:
    """Median seconds of a step, without labels and with."""
    images = torch.randint(
        0,
        256,
        (experiment.train.batch_size, experiment.model.channels, *[experiment.model.resolution] * 2),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    kinds = (experiment, dataclasses.replace(experiment, condition=LABELS))
    steps = [TrainStep(TrainState.create(one), one, EngineConfig()) for one in kinds]
    taken: list[list[float]] = [[], []]
    for number in range(rounds + 2):
        positions = torch.arange(len(images)) + number * len(images)
        # In turns, and each one first every other time.
        for kind in (0, 1) if number % 2 == 0 else (1, 0):
            batch = Batch(images, positions, labels=positions % LABELS.size if kind else None)
            began = time.perf_counter()
            steps[kind](batch)
            taken[kind].append(time.perf_counter() - began)
    plain, labelled = (statistics.median(seconds[2:]) for seconds in taken)
    return plain, labelled


if __name__ == "__main__":
    entry_point(main)
