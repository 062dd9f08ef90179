"""How near a GPU's peak the chain's gradient could come at most, counted without a GPU: nothing is timed.

    python -m benchmarks.roofline [--presets cifar10,cifar10:unet --batch-size 64 --precision float32]
                                  [--tflops 989 --bandwidth 3.35] [--num-res-blocks 1] [--without-fusion]
    python -m benchmarks.roofline --kernels FOLDER [--presets digits:t6 and so on]

Of one image gradient of a worker's batch the table has the FLOP of convolutions and products; the bytes that these, all
operations one by one, and the kernels that torch's compiler fuses them to for a GPU read and write at least; and the
time that this takes if each of them takes the longer of its FLOP at the peak and its bytes at the bandwidth of the
memory. The share is the one of the peak that is reached in that time. By default --tflops and --bandwidth are what is
published of an H100 SXM: 989 TFLOP/s in bfloat16, without sparsity, and 3.35 TB/s.

A preset may name one of its settings behind a colon. The compiler takes up to a minute of a processor for each.

With --kernels it instead writes into a new folder the code that the compiler writes of that gradient for an H100: each
graph, the Triton code of each kernel in it, and machine code of compute capability 9.0 beside that. Triton must be
installed; a GPU, or a torch for one, need not.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Sequence
from typing import Literal

from benchmarks.presets import experiment_of
from drl_dist.common.amounts import counted, short
from drl_dist.common.program import entry_point
from drl_dist.common.validation import local_of, refuse_broken, whole_number
from drl_dist.config.presets import TABLE_6
from drl_dist.config.tree import Experiment

HEADER = (
    "| preset, setting | images | FLOP | convolutions alone: bytes, intensity, time, share "
    "| one by one: operations, bytes, time, share | fused: kernels + convolutions, bytes, time, share |"
)


def main(words: Sequence[str]) -> int:
    """Parse, count, print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.roofline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", default=",".join(TABLE_6), help="separated by commas")
    parser.add_argument("--batch-size", type=whole_number, help="images of a gradient; by default the preset's")
    parser.add_argument("--num-res-blocks", type=whole_number, help="of each resolution; by default the preset's")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--tflops", type=float, default=989.0, help="peak of the GPU in 10**12 operations a second")
    parser.add_argument("--bandwidth", type=float, default=3.35, help="of its memory in 10**12 bytes a second")
    parser.add_argument("--without-fusion", action="store_true", help="leave out what takes the compiler its time")
    parser.add_argument("--kernels", help="a new folder for the kernels' code, instead of the table")
    given = parser.parse_args(words)
    refuse_broken(
        [
            ("--batch-size", given.batch_size, "1 or more", given.batch_size is None or given.batch_size >= 1),
            ("--num-res-blocks", given.num_res_blocks, "1 or more", given.num_res_blocks in (None, *range(1, 1000))),
            ("--tflops", given.tflops, "a positive number", given.tflops > 0),
            ("--bandwidth", given.bandwidth, "a positive number", given.bandwidth > 0),
        ]
    )
    names = [name for name in given.presets.split(",") if name]
    experiments = [sized(experiment_of(name), given.batch_size, given.num_res_blocks) for name in names]
    if given.kernels is not None:
        return write_kernels(dict(zip(names, experiments, strict=True)), given)
    print(HEADER)
    print("|---" * HEADER.count(" |") + "|", flush=True)
    for name, experiment in zip(names, experiments, strict=True):
        print(row(name, experiment, given), flush=True)
    return 0


def sized(experiment: Experiment, batch_size: int | None, num_res_blocks: int | None) -> Experiment:
    """The experiment with another size of batches and networks, where they are given."""
    train, model = experiment.train, experiment.model
    return dataclasses.replace(
        experiment,
        train=dataclasses.replace(train, batch_size=batch_size or train.batch_size),
        model=dataclasses.replace(model, num_res_blocks=num_res_blocks or model.num_res_blocks),
    )


def write_kernels(experiments: dict[str, Experiment], given: argparse.Namespace) -> int:
    """Write the code of each gradient, and print what was written; the exit status.

    Raises:
        UserError: the folder cannot be used, or Triton is not installed.
    """
    from benchmarks.roofline.code import check_triton, kernels_in, machine_code, written
    from benchmarks.roofline.gradient import of_compiled

    folder = local_of(given.kernels, "--kernels")
    refuse_broken([("--kernels", folder, "a new folder", not folder.exists())])
    check_triton()
    for name, experiment in experiments.items():
        place = folder / name.replace(":", "-")
        with warnings.catch_warnings(action="ignore"):
            graphs = of_compiled(experiment, given.precision, written)
        sizes: list[int] = []
        for number, code in enumerate(graphs):
            # Kernels of two graphs may have the same name.
            of_graph = place / f"graph_{number}"
            of_graph.mkdir(parents=True)
            (of_graph / "graph.py").write_text(code)
            for kernel, source in kernels_in(code).items():
                path = of_graph / f"{kernel}.py"
                path.write_text(source)
                image = machine_code(path)
                path.with_suffix(".cubin").write_bytes(image)
                sizes.append(len(image))
        print(
            f"{name}: {counted(len(graphs), 'graph')}, {counted(len(sizes), 'kernel')} in Triton and "
            f"{short(sum(sizes), 'B')} of machine code in {place}",
            flush=True,
        )
    return 0


def row(name: str, experiment: Experiment, given: argparse.Namespace) -> str:
    """One line of the table."""
    from benchmarks.roofline.bound import Machine, bound
    from benchmarks.roofline.gradient import eager_operations, fused_kernels

    machine = Machine(given.tflops * 1e12, given.bandwidth * 1e12)
    precision: Literal["float32", "bfloat16"] = given.precision
    # Warnings are for whoever trains.
    with warnings.catch_warnings(action="ignore"):
        operations = [one for one in eager_operations(experiment, precision) if not one.is_view]
        kernels = [] if given.without_fusion else fused_kernels(experiment, precision)
    products = [one for one in operations if one.flop]
    flop, own = sum(one.flop for one in products), sum(one.nbytes for one in products)
    alone = bound([(one.flop, one.nbytes) for one in products], machine)
    eager = bound([(one.flop, one.nbytes) for one in operations], machine)
    cells = [
        name.replace(":", ", "),
        str(experiment.train.batch_size),
        short(flop, "FLOP"),
        f"{short(own, 'B')}, {flop / own:.0f} FLOP/B, {alone.shown(machine)}",
        f"{len(operations)}, {short(sum(one.nbytes for one in operations), 'B')}, {eager.shown(machine)}",
        "–",
    ]
    if kernels:
        # What a library computes it reads and writes as before; the compiler has fused the rest.
        rest = [one.nbytes for one in kernels if not one.is_product]
        fused = bound([*((one.flop, one.nbytes) for one in products), *((0, size) for size in rest)], machine)
        counts = f"{len(rest)} + {len(kernels) - len(rest)}"
        cells[-1] = f"{counts}, {short(own + sum(rest), 'B')}, {fused.shown(machine)}"
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
