"""A table of what every preset costs, as in docs/performance.md: nothing is trained.

    python -m benchmarks.presets [--presets cifar10,digits:unet --num-workers 1 --tflops 100]
    python -m benchmarks.presets --memory 8 [--presets cifar10,digits:unet --num-workers 1]

A preset may name one of its settings behind a colon; by default all presets of Table 6 in the paper's setting, and ours
in theirs. Rows of a run that begins with another objective are of its last one, its FLOP those of the whole run. With
--memory the table says instead what memory a step takes in each way of engine.memory, in slices of so many images, and
how many more operations it makes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from drl_dist.common.amounts import mebibytes, short
from drl_dist.common.durations import duration
from drl_dist.common.errors import UserError
from drl_dist.common.program import entry_point
from drl_dist.common.validation import refuse_broken, whole_number
from drl_dist.config.presets import SETTINGS, TABLE_6, default_setting, preset
from drl_dist.config.tree import EngineConfig, Experiment, RunConfig


def main(words: Sequence[str]) -> int:
    """Parse, count, print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.presets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", default=",".join(TABLE_6), help="separated by commas")
    parser.add_argument("--num-workers", type=whole_number, default=1, help="that share a batch")
    parser.add_argument("--tflops", type=float, help="operations that a worker makes in a second, in 10**12")
    parser.add_argument("--memory", type=whole_number, help="images of a slice")
    given = parser.parse_args(words)
    refuse_broken(
        [
            ("--num-workers", given.num_workers, "1 or more", given.num_workers >= 1),
            ("--memory", given.memory, "1 or more", given.memory is None or given.memory >= 1),
            ("--tflops", given.tflops, "a positive number", given.tflops is None or given.tflops > 0),
        ]
    )
    runs = [(name, run_of(name, given.num_workers)) for name in given.presets.split(",") if name]
    if given.memory:
        print_memory(runs, given.memory)
        return 0
    hours = f" time at {given.tflops:g} TFLOP/s |" if given.tflops else ""
    print(
        "| preset, setting | parameters | images of a worker | gradients + forwards a step | FLOP a step "
        f"| memory: state / chain / update | FLOP of the run |{hours}"
    )
    print("|---|---|---|---|---|---|---|" + ("---|" if hours else ""))
    from drl_dist.training.estimate import estimate

    for name, run in runs:
        made = estimate(run)
        cost = made.phases[-1].cost
        chain = mebibytes(cost.chain_bytes) if cost.chain_gradients else "–"
        row = (
            f"| {name.replace(':', ', ')} | {short(cost.num_parameters)} | {cost.images_per_worker} "
            f"| {cost.chain_gradients} + 1 | {short(cost.flop, 'FLOP')} "
            f"| {mebibytes(cost.state_bytes)} / {chain} / {mebibytes(cost.update_bytes)} | {short(made.flop, 'FLOP')} |"
        )
        print(row + (f" {duration(made.seconds(given.tflops))} |" if given.tflops else ""), flush=True)
    return 0


def print_memory(runs: Sequence[tuple[str, RunConfig]], images: int) -> None:
    """The table of what each way of ``engine.memory`` takes, of a run's last objective."""
    from drl_dist.training.cost import phases, step_cost

    slices = EngineConfig(memory="slices", chain_images=images, update_images=images)
    again = EngineConfig(memory="checkpointing")
    both = replace(slices, memory="checkpointing")
    print(
        "| preset, setting | images of a worker | state | plain: chain / update "
        f"| slices of {images}: chain / update | checkpointing: update | both: update | more FLOP: slices, "
        "checkpointing, both |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, run in runs:
        experiment = phases(run.experiment)[-1][1]
        costs = [
            step_cost(experiment, num_workers=run.num_workers, engine=engine)
            for engine in (EngineConfig(), slices, again, both)
        ]
        plain, in_slices, recomputed, in_both = costs
        more = ", ".join(f"{100 * (cost.flop / plain.flop - 1):.2f} %" for cost in costs[1:])
        print(
            f"| {name.replace(':', ', ')} | {plain.images_per_worker} | {mebibytes(plain.state_bytes)} "
            f"| {mebibytes(plain.chain_bytes)} / {mebibytes(plain.update_bytes)} "
            f"| {mebibytes(in_slices.chain_bytes)} / {mebibytes(in_slices.update_bytes)} "
            f"| {mebibytes(recomputed.update_bytes)} | {mebibytes(in_both.update_bytes)} | {more} |",
            flush=True,
        )


def run_of(name: str, num_workers: int) -> RunConfig:
    """The run of ``PRESET`` or ``PRESET:SETTING``; errors as of `experiment_of`."""
    return RunConfig(experiment=experiment_of(name), num_workers=num_workers)


def experiment_of(name: str) -> Experiment:
    """The experiment of ``PRESET`` or ``PRESET:SETTING``.

    Raises:
        UserError: there is none of this name.
    """
    preset_name, colon, setting = name.partition(":")
    if preset_name not in TABLE_6 or (colon and setting not in SETTINGS):
        raise UserError(
            "option --presets",
            got=name,
            expected=f"some of {', '.join(TABLE_6)}, each maybe with :SETTING",
            remedy=f"choose of these, and a setting of {', '.join(SETTINGS)}",
        )
    return preset(preset_name, setting or default_setting(preset_name))


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
