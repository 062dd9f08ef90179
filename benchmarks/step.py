"""Time a training step: the engine, the plain reference, and the bare convolutions, interleaved in one run.

    python -m benchmarks.step [--preset cifar10 --num-res-blocks 2 --batch-size 8 --rounds 3 --device cpu ...]

The reference computes in float32; the engine and its floor are timed in each ``--precision``. Prints a table of medians
and ratios, and writes them as JSON to the file given with ``--json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floor import BareConvolutions
from benchmarks.memory import peak_bytes
from drl_dist.common.batch import Batch
from drl_dist.common.places import path_here
from drl_dist.config.presets import TABLE_6, preset
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.ladder import Pairs
from drl_dist.energy.wide_resnet import WideResNet
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.reference import ReferenceStep

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10", choices=sorted(TABLE_6))
    parser.add_argument("--num-res-blocks", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-chain-steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--compile", default="auto", choices=["auto", "always", "never"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=path_here, help="write the figures to this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments)
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run."""
    base = preset(arguments.preset)
    experiment = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, num_res_blocks=arguments.num_res_blocks),
        mcmc=dataclasses.replace(base.mcmc, num_chain_steps=arguments.num_chain_steps),
        train=dataclasses.replace(base.train, batch_size=arguments.batch_size),
    )
    device = torch.device(arguments.device)
    batch = random_batch(experiment, device)
    contenders: dict[str, Callable[[], object]] = {}
    chain_flop = 0.0
    for precision in arguments.precision:
        state = TrainState.create(experiment, device)
        engine = TrainStep(state, experiment, EngineConfig(precision=precision, compile=arguments.compile))
        pairs = engine.draw(batch.images, batch.positions)
        chain_flop = gradient_flop(state, experiment, pairs.level, pairs.x_noisy) * arguments.num_chain_steps
        add_step(contenders, f"engine {precision}", engine, batch, pairs)
        assert isinstance(state.network, WideResNet)
        floor = BareConvolutions(state.network, arguments.batch_size, DTYPES[precision])
        contenders[f"floor {precision}: chain"] = functools.partial(floor.run, arguments.num_chain_steps)
    add_reference(contenders, experiment, batch, device)
    for run in contenders.values():
        run()  # warms up allocators, compilation and graphs

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(arguments.rounds):
        for name, run in contenders.items():
            seconds[name].append(timed(run, device))
        print(f"round {index + 1} of {arguments.rounds} done", flush=True)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    figures: dict[str, Any] = {
        "machine": machine(device),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "setting": {name: str(value) for name, value in vars(arguments).items() if name != "json"},
        "seconds": seconds,
        "median_seconds": median,
        "ratios": {},
        "chain_tflop_per_second": {},
        "peak_mib": {},
    }
    reference = median["reference float32: chain"] + median["reference float32: update"]
    for precision in arguments.precision:
        chain, update = median[f"engine {precision}: chain"], median[f"engine {precision}: update"]
        ratios = figures["ratios"]
        ratios[f"reference step / engine {precision} step"] = reference / (chain + update)
        ratios[f"engine {precision} chain / its floor"] = chain / median[f"floor {precision}: chain"]
        figures["chain_tflop_per_second"][precision] = chain_flop / chain / 1e12
        figures["peak_mib"][precision] = {
            part: peak_bytes(contenders[f"engine {precision}: {part}"], device) / 2**20 for part in ("chain", "update")
        }
        if device.type == "cuda":
            peak = matrix_rate(DTYPES[precision])
            ratios[f"{precision} chain rate / matrix rate"] = chain_flop / chain / peak
    return figures


def gradient_flop(state: TrainState, experiment: Experiment, level: Tensor, y: Tensor) -> int:
    """Floating-point operations of one image gradient of the whole batch."""
    plain = TrainStep(state, experiment, EngineConfig(compile="never", cuda_graph=False))
    with FlopCounterMode(display=False) as counter:
        plain.gradients.raw_at(level)(y)
    return counter.get_total_flops()


def add_step(
    contenders: dict[str, Callable[[], object]], name: str, step: TrainStep, batch: Batch, pairs: Pairs
) -> None:
    """Time chain and update of a step separately."""
    y_neg = step.run_chain(pairs, batch.positions)
    contenders[f"{name}: chain"] = lambda: step.run_chain(pairs, batch.positions)
    contenders[f"{name}: update"] = lambda: step.update(pairs, y_neg)


def add_reference(
    contenders: dict[str, Callable[[], object]], experiment: Experiment, batch: Batch, device: torch.device
) -> None:
    """The plain step of the tests; on a GPU, which it does not support, the eager engine without graphs."""
    state = TrainState.create(experiment, device)
    if device.type != "cpu":
        eager = TrainStep(state, experiment, EngineConfig(compile="never", cuda_graph=False))
        add_step(contenders, "reference float32", eager, batch, eager.draw(batch.images, batch.positions))
        return
    reference = ReferenceStep(state.network.state_dict(), experiment)
    level, y_pos, x_noisy = reference.draw(batch.images, batch.positions)
    contenders["reference float32: chain"] = lambda: reference.run_chain(level, x_noisy, batch.positions)
    contenders["reference float32: update"] = lambda: reference.update(level, y_pos, x_noisy)


def random_batch(experiment: Experiment, device: torch.device) -> Batch:
    """Images of noise: the time of a step does not depend on their content."""
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
    """The machine that the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def table(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [f"{figures['machine']}, torch {figures['torch']}, {figures['date']}", f"{figures['setting']}", ""]
    lines += [f"{name:<26} {seconds:10.4f} s" for name, seconds in figures["median_seconds"].items()]
    lines.append("")
    lines += [f"{name:<38} {ratio:6.2f}" for name, ratio in figures["ratios"].items()]
    for precision, rate in figures["chain_tflop_per_second"].items():
        peak = figures["peak_mib"][precision]
        lines.append(f"{precision + ' chain rate':<38} {rate:6.3f} TFLOP/s")
        lines.append(f"{precision + ' peak memory, chain / update':<38} {peak['chain']:.0f} / {peak['update']:.0f} MiB")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
