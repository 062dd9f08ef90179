"""How fast a training step is: the engine, the plain reference, and the bare convolutions, interleaved in one run.

    python -m benchmarks.step [--preset cifar10 --num-res-blocks 2 --batch-size 8 --rounds 3 --device cpu ...]

Prints a table of medians and ratios, and writes the same as JSON where ``--json`` says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floor import BareConvolutions
from benchmarks.memory import peak_bytes
from drl_dist.config import EngineConfig, Experiment
from drl_dist.presets import TABLE_6, preset
from drl_dist.training.batch import Batch
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.reference import ReferenceStep


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10", choices=sorted(TABLE_6))
    parser.add_argument("--num-res-blocks", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-chain-steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", default="auto", choices=["auto", "always", "never"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments)
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of one run."""
    base = preset(arguments.preset)
    experiment = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, num_res_blocks=arguments.num_res_blocks),
        mcmc=dataclasses.replace(base.mcmc, num_chain_steps=arguments.num_chain_steps),
        train=dataclasses.replace(base.train, batch_size=arguments.batch_size),
    )
    device = torch.device(arguments.device)
    state = TrainState.create(experiment, device)
    engine = TrainStep(state, experiment, EngineConfig(precision=arguments.precision, compile=arguments.compile))
    weights = {name: value.cpu() for name, value in state.network.state_dict().items()}
    reference = ReferenceStep(weights, experiment) if device.type == "cpu" else None
    batch = random_batch(experiment, device)
    pairs = engine.draw(batch.images, batch.positions)
    dtype = torch.bfloat16 if arguments.precision == "bfloat16" else torch.float32
    floor = BareConvolutions(state.network, arguments.batch_size, dtype)
    with FlopCounterMode(display=False) as counter:
        TrainStep(state, experiment, EngineConfig(compile="never", cuda_graph=False)).gradients.raw_at(pairs.level)(
            pairs.x_noisy
        )
    chain_flop = counter.get_total_flops() * arguments.num_chain_steps

    y_neg = engine.run_chain(pairs, batch.positions)  # also warms up compilation and graphs
    engine.update(pairs, y_neg)
    floor.run(1)
    contenders: dict[str, Callable[[], object]] = {
        "engine: chain": lambda: engine.run_chain(pairs, batch.positions),
        "engine: update": lambda: engine.update(pairs, y_neg),
        "floor: chain": lambda: floor.run(arguments.num_chain_steps),
    }
    if reference is not None:
        level, y_pos, x_noisy = reference.draw(batch.images, batch.positions)
        contenders["reference: chain"] = lambda: reference.run_chain(level, x_noisy, batch.positions)
        contenders["reference: update"] = lambda: reference.update(level, y_pos, y_neg)
    else:
        eager = TrainStep(state, experiment, EngineConfig(compile="never", cuda_graph=False))
        eager.run_chain(pairs, batch.positions)
        contenders["reference: chain"] = lambda: eager.run_chain(pairs, batch.positions)
        contenders["reference: update"] = lambda: eager.update(pairs, y_neg)

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(arguments.rounds):
        for name, run in contenders.items():
            seconds[name].append(timed(run, device))
        print(f"round {index + 1} of {arguments.rounds} done", flush=True)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    step = {who: median[f"{who}: chain"] + median[f"{who}: update"] for who in ("engine", "reference")}
    figures: dict[str, Any] = {
        "machine": machine(device),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "setting": {name: str(value) for name, value in vars(arguments).items() if name != "json"},
        "seconds": seconds,
        "median_seconds": median,
        "ratios": {
            "reference step / engine step": step["reference"] / step["engine"],
            "engine chain / floor": median["engine: chain"] / median["floor: chain"],
        },
        "chain_tflop_per_second": chain_flop / median["engine: chain"] / 1e12,
        "peak_mib": {
            "chain": peak_bytes(contenders["engine: chain"], device) / 2**20,
            "update": peak_bytes(contenders["engine: update"], device) / 2**20,
        },
    }
    if device.type == "cuda":
        peak = matrix_rate(dtype)
        figures["matrix_tflop_per_second"] = peak / 1e12
        figures["ratios"]["chain rate / matrix rate"] = chain_flop / median["engine: chain"] / peak
    return figures


def random_batch(experiment: Experiment, device: torch.device) -> Batch:
    """Images of noise: the time of a step does not depend on what it sees."""
    model = experiment.model
    shape = (experiment.train.batch_size, model.channels, model.resolution, model.resolution)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Batch(images.to(device), torch.arange(shape[0], device=device))


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's queue drained before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP per second of a large matrix product of random numbers: the practical peak of a GPU."""
    left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))

    def product() -> Tensor:
        return left @ right

    for _ in range(3):
        product()
    seconds = statistics.median(timed(product, torch.device("cuda")) for _ in range(10))
    return 2 * size**3 / seconds


def machine(device: torch.device) -> str:
    """What the figures belong to."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def table(figures: dict[str, Any]) -> str:
    """The figures for reading."""
    lines = [f"{figures['machine']}, torch {figures['torch']}, {figures['date']}", f"{figures['setting']}", ""]
    lines += [f"{name:<22} {seconds:10.4f} s" for name, seconds in figures["median_seconds"].items()]
    lines.append("")
    lines += [f"{name:<32} {ratio:6.2f}" for name, ratio in figures["ratios"].items()]
    lines.append(f"{'chain rate':<32} {figures['chain_tflop_per_second']:6.3f} TFLOP/s")
    lines.append(
        f"{'peak memory, chain / update':<32} "
        f"{figures['peak_mib']['chain']:.0f} / {figures['peak_mib']['update']:.0f} MiB"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
