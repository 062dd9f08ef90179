"""Compare what workers that share their state are said to need with what they hold and allocate.

    python -m benchmarks.shares [--cases lsun_bedroom128:t6:2 --num-workers 2 --json FILE]

Cases are those of `benchmarks.memory`, their batches those of all workers together. The workers are processes on the
CPU that talk over gloo; the figures are those of the first, which has the largest share. Chains are cut to two steps,
which take as much memory as more. Ends with status 1 if they differ by more than a tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.memory import TOLERANCE, case_of, cases_of, measured
from benchmarks.results import figures_file
from drl_dist.common.amounts import mebibytes
from drl_dist.common.program import entry_point
from drl_dist.common.validation import refuse_broken, whole_number
from drl_dist.config.tree import EngineConfig

CASES = "digits:t6:32,fashion_mnist:t6:32,cifar10:t6:2,lsun_bedroom128:t6:2"


def main(words: Sequence[str]) -> int:
    """Parse, measure, print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.shares", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=CASES, help="separated by commas")
    parser.add_argument("--num-workers", type=whole_number, default=2, help="that share the state")
    parser.add_argument("--json", type=figures_file, help="write the figures to this file, too")
    given = parser.parse_args(words)
    count = given.num_workers
    refuse_broken([("--num-workers", count, "2 or more", count >= 2)])
    cases = cases_of(given.cases)
    whole = f"batches that {count} workers can divide"
    refuse_broken([("--cases", name, whole, case.train.batch_size % count == 0) for name, case in cases.items()])
    from torch.multiprocessing.spawn import spawn

    from drl_dist.training.cost import step_cost, with_numbers

    figures: dict[str, Any] = {}
    print("| preset, setting, batch | state: whole / share, estimated / real | chain: estimated / real | update |")
    print("|---|---|---|---|")
    for name, case in cases.items():
        with TemporaryDirectory() as folder:
            spawn(_one_rank, args=(count, name, folder), nprocs=count)
            found = figures[name] = json.loads((Path(folder) / "figures").read_text())
        before = step_cost(with_numbers(case), num_workers=count).state_bytes
        state, chain, update = (
            f"{mebibytes(found[part]['estimated'])} / {mebibytes(found[part]['real'])}"
            for part in ("state", "chain", "update")
        )
        print(f"| {name.replace(':', ', ')} | {mebibytes(before)} / {state} | {chain} | {update} |", flush=True)
    worst = max(abs(part["estimated"] / part["real"] - 1) for found in figures.values() for part in found.values())
    print(f"largest difference: {100 * worst:.1f} %")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(worst > TOLERANCE)


def _one_rank(rank: int, world_size: int, name: str, folder: str) -> None:
    from torch import distributed

    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world_size)
    experiment = case_of(name)
    experiment = replace(experiment, mcmc=replace(experiment.mcmc, num_chain_steps=2))
    found = measured(experiment, EngineConfig(shard=True))
    if rank == 0:
        (Path(folder) / "figures").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()
    # As long as gloo's threads hold a tensor, they abort an interpreter that ends (pytorch/pytorch issue 190489).
    os._exit(0)


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
