"""Compare what a training step is said to need with what it allocates.

    python -m benchmarks.memory [--cases digits,fashion_mnist:unet,cifar10:t6:2 --json FILE]
    python -m benchmarks.memory --memory checkpointing --images 8

A case is PRESET:SETTING:BATCH; setting and batch may be left out. Every case is measured in a process of its own: a
real step on the CPU, whose allocations torch's profiler counts, against the estimate that
`jobs/train_*.py --estimate` prints. Ends with status 1 if they differ by more than a tenth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.results import figures_file
from drl_dist.common.amounts import mebibytes
from drl_dist.common.errors import UserError
from drl_dist.common.program import entry_point
from drl_dist.common.validation import refuse_broken, whole_number
from drl_dist.config.presets import SETTINGS, TABLE_6, preset
from drl_dist.config.tree import EngineConfig, Experiment

CASES = "digits,digits:t6,fashion_mnist:t6,fashion_mnist:t1k:16,fashion_mnist:unet,cifar10:t6:2"
TOLERANCE = 0.1


def main(words: Sequence[str]) -> int:
    """Parse, measure, print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=CASES, help="separated by commas")
    parser.add_argument("--json", type=figures_file, help="write the figures to this file, too")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=("plain", "slices", "checkpointing"), default="plain", help="engine.memory")
    parser.add_argument("--images", type=whole_number, help="of a slice; by default all")
    given = parser.parse_args(words)
    images = given.images
    refuse_broken(
        [
            (
                "--images",
                images,
                "1 or more, not beside plain",
                images is None or (images >= 1 and given.memory != "plain"),
            )
        ]
    )
    if given.measure:
        engine = EngineConfig(memory=given.memory, chain_images=given.images, update_images=given.images)
        print(json.dumps(measured(case_of(given.measure), engine)))
        return 0
    cases = cases_of(given.cases)
    figures: dict[str, Any] = {}
    print(f"{'preset:setting:batch':<26}{'chain, estimated':>18}{'real':>10}{'update, estimated':>20}{'real':>10}")
    for name in cases:
        command = [sys.executable, "-m", "benchmarks.memory", "--measure", name, "--memory", given.memory]
        command += ["--images", str(images)] if images else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = figures[name] = json.loads(done.stdout)
        cells = [
            text
            for part in ("chain", "update")
            for text in (mebibytes(found[part]["estimated"]), mebibytes(found[part]["real"]))
        ]
        print(f"{name:<26}{cells[0]:>18}{cells[1]:>10}{cells[2]:>20}{cells[3]:>10}", flush=True)
    worst = max(abs(part["estimated"] / part["real"] - 1) for found in figures.values() for part in found.values())
    print(f"largest difference: {100 * worst:.1f} %")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(worst > TOLERANCE)


def cases_of(names: str) -> dict[str, Experiment]:
    """The experiments of cases, separated by commas, by their names.

    Raises:
        UserError: there are none, or one names none.
    """
    cases = [name for name in names.split(",") if name]
    refuse_broken([("--cases", names or "none", "one or more, separated by commas", bool(cases))])
    return {name: case_of(name) for name in cases}


def case_of(name: str) -> Experiment:
    """The experiment of a case.

    Raises:
        UserError: it names none.
    """
    preset_name, setting, batch = (*name.split(":"), "", "")[:3]
    is_known = preset_name in TABLE_6 and setting in ("", *SETTINGS) and (not batch or batch.isdigit())
    if not is_known or batch == "0" or name.count(":") > 2:
        raise UserError(
            "option --cases",
            got=name,
            expected="PRESET[:SETTING[:BATCH]] such as cifar10:t6:2",
            remedy=f"choose a preset of {', '.join(TABLE_6)}, and a setting of {', '.join(SETTINGS)}",
        )
    experiment = preset(preset_name, setting) if setting else preset(preset_name)
    if batch:
        train = dataclasses.replace(experiment.train, batch_size=int(batch))
        experiment = dataclasses.replace(experiment, train=train)
    return experiment


def measured(
    experiment: Experiment, engine: EngineConfig | None = None, device: str = "cpu"
) -> dict[str, dict[str, int]]:
    """Bytes held at most in chain and update of one worker's step, estimated and real; of a run's last objective.

    With ``engine.shard``, every rank of torch.distributed calls this, and what it holds of the state is told, too.

    Args:
        experiment: what is trained.
        engine: precision, and how the step fits into memory; by default float32 with all images at once.
        device: on which the real step is made, eagerly.

    Raises:
        torch.OutOfMemoryError: the GPU's memory is too small for the real step.
    """
    import torch

    from benchmarks.peaks import peak_bytes
    from drl_dist.common.batch import Batch
    from drl_dist.training.cost import phases, step_cost, with_numbers
    from drl_dist.training.sharded import rows, sharded
    from drl_dist.training.state import TrainState
    from drl_dist.training.step import TrainStep

    experiment = with_numbers(phases(experiment)[-1][1])
    engine = dataclasses.replace(engine or EngineConfig(), compile="never", cuda_graph=False)
    ranks = torch.distributed.get_world_size() if engine.shard else 1
    cost = step_cost(experiment, num_workers=ranks, engine=engine)
    state = TrainState.create(experiment, device)
    if engine.shard:
        state = sharded(state, experiment)
    step = TrainStep(state, experiment, engine)
    model, count = experiment.model, experiment.train.batch_size // ranks
    images = torch.randint(0, 256, (count, model.channels, model.resolution, model.resolution), dtype=torch.uint8)
    images = images.to(device)
    batch = Batch(images, torch.arange(count, device=device))
    # The first step makes the optimiser's moments and the gradients, which the second one finds.
    step(batch)
    before = images.nbytes + state.num_bytes
    gradients = sum(rows(value.grad).nbytes for value in state.network.parameters() if value.grad is not None)
    # Those that the chain has gathered.
    gathered = sum(value.nbytes for value in state.network.parameters()) if engine.shard else 0

    def next_step() -> tuple[int, int]:
        ends: list[Any] = []
        chain = before + gradients + peak_bytes(lambda: ends.extend(step.negatives(batch)), step.device)
        pairs, y_neg, meter = ends
        # The first thing that an update does; torch's profiler does not see the end of what was there before it.
        state.optimizer.zero_grad(set_to_none=True)
        between = before + sum(value.nbytes for value in (*vars_of(pairs), y_neg) if isinstance(value, torch.Tensor))

        def update() -> None:
            _, grad_norm, _ = step.backward(pairs, y_neg, meter)
            step.advance(grad_norm)

        return chain, between + gathered + peak_bytes(update, step.device)

    # On a busy machine, gloo's threads now and then let go of what they have exchanged later.
    chain, real = map(min, zip(*(next_step() for _ in range(2 if engine.shard else 1)), strict=True))
    state_bytes = {"state": {"estimated": cost.state_bytes, "real": state.num_bytes}} if engine.shard else {}
    return state_bytes | {
        "chain": {"estimated": cost.chain_bytes, "real": chain},
        "update": {"estimated": cost.update_bytes, "real": real},
    }


def vars_of(pairs: Any) -> list[object]:
    """The values of the fields of a dataclass or a named tuple."""
    return list(pairs) if isinstance(pairs, tuple) else list(vars(pairs).values())


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
