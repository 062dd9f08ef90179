"""Time a training step: the engine, the plain reference, and the bare convolutions, interleaved in one run.

    python -m benchmarks.step [--preset cifar10 --num-res-blocks 2 --batch-size 8 --rounds 3 --device cpu ...]

The reference, which is of the wide ResNet, computes in float32; the engine and its floor are timed in each
``--precision`` and with each choice of ``--compile``. With ``--setting unet`` it is the U-Net, whose step of score
matching is timed, too. Prints a table of medians and ratios, and writes them as JSON to the file given with ``--json``.
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
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.floor import BareConvolutions, convolutions_of
from benchmarks.peaks import peak_bytes
from benchmarks.results import figures_file
from drl_dist.common.batch import Batch
from drl_dist.common.program import entry_point
from drl_dist.common.validation import whole_number
from drl_dist.config.presets import SETTINGS, TABLE_6, preset
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.ladder import Pairs
from drl_dist.training.cost import count_flop
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.reference import ReferenceStep

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> int:
    """Parse, measure, print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10", choices=sorted(TABLE_6))
    parser.add_argument("--setting", default="t6", choices=sorted(set(SETTINGS) - {"t1k", "t1k_dsm"}))
    parser.add_argument("--num-res-blocks", type=whole_number, default=2)
    parser.add_argument("--batch-size", type=whole_number, default=8)
    parser.add_argument("--num-chain-steps", type=whole_number, help="by default 30, with the U-Net 3")
    parser.add_argument("--rounds", type=whole_number, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--compile", nargs="+", default=["auto"], choices=["auto", "always", "never"])
    parser.add_argument("--threads", type=whole_number, default=torch.get_num_threads())
    parser.add_argument("--json", type=figures_file, help="write the figures to this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.num_chain_steps is None:
        arguments.num_chain_steps = 3 if arguments.setting == "unet" else 30
    figures = measure(arguments)
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run."""
    experiment = timed_experiment(arguments)
    device = torch.device(arguments.device)
    batch = random_batch(experiment, device)
    contenders: dict[str, Callable[[], object]] = {}
    engines = {engine_name(arguments, *each): each for each in product(arguments.precision, arguments.compile)}
    chain_flop = 0.0
    for name, (precision, choice) in engines.items():
        state = TrainState.create(experiment, device)
        config = EngineConfig(precision=precision, compile=choice)
        engine = TrainStep(state, experiment, config)
        pairs = engine.draw(batch.images, batch.positions)
        num_gradients = arguments.num_chain_steps + (experiment.mcmc.start == "tweedie")
        chain_flop = gradient_flop(state, experiment, pairs.level, pairs.x_noisy) * num_gradients
        add_step(contenders, name, engine, batch, pairs)
        prepared = state.network.prepare(pairs.level, DTYPES[precision])
        found = convolutions_of(functools.partial(state.network.evaluate, prepared, pairs.x_noisy))
        floor = BareConvolutions(found, DTYPES[precision], device)
        contenders[f"floor {precision}: chain"] = functools.partial(floor.run, num_gradients)
        if experiment.model.network == "unet":
            add_matching(contenders, name, experiment, config, batch, device)
    if experiment.model.network == "wide_resnet":
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
    ratios, first = figures["ratios"], next(iter(engines))
    for name, (precision, _) in engines.items():
        chain, update = median[f"{name}: chain"], median[f"{name}: update"]
        if "reference float32: chain" in median:
            reference = median["reference float32: chain"] + median["reference float32: update"]
            ratios[f"reference step / {name} step"] = reference / (chain + update)
        ratios[f"{name} chain / its floor"] = chain / median[f"floor {precision}: chain"]
        if f"{name}: matching" in median and name != first:
            ratios[f"{name} matching / {first}"] = median[f"{name}: matching"] / median[f"{first}: matching"]
        figures["chain_tflop_per_second"][name] = chain_flop / chain / 1e12
        figures["peak_mib"][name] = {
            part: peak_bytes(contenders[f"{name}: {part}"], device) / 2**20 for part in ("chain", "update")
        }
        if device.type == "cuda":
            ratios[f"{name} chain rate / matrix rate"] = chain_flop / chain / matrix_rate(DTYPES[precision])
    return figures


def timed_experiment(arguments: argparse.Namespace) -> Experiment:
    """The preset in its size of this benchmark, which trains by recovery."""
    base = preset(arguments.preset, arguments.setting)
    diffusion = base.diffusion
    if arguments.setting == "unet":
        # What some presets leave to their data; times do not depend on it.
        ends = {"first_noise_to_signal": 1e-4, "last_noise_to_signal": 140.0}
        diffusion = dataclasses.replace(diffusion, **ends)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(
            base.model, num_res_blocks=arguments.num_res_blocks, data_std=base.model.data_std or 0.5
        ),
        diffusion=diffusion,
        mcmc=dataclasses.replace(base.mcmc, num_chain_steps=arguments.num_chain_steps),
        optim=dataclasses.replace(
            base.optim, first_objective=None, first_objective_steps=0, switch_rate_factor=1.0, objective="recovery"
        ),
        train=dataclasses.replace(base.train, batch_size=arguments.batch_size),
    )


def engine_name(arguments: argparse.Namespace, precision: str, choice: str) -> str:
    """What an engine is called in the table."""
    return f"engine {precision}" + (f", compile {choice}" if len(arguments.compile) > 1 else "")


def gradient_flop(state: TrainState, experiment: Experiment, level: Tensor, y: Tensor) -> int:
    """Floating-point operations of one image gradient of the whole batch."""
    plain = TrainStep(state, experiment, EngineConfig(compile="never", cuda_graph=False))
    return count_flop(lambda: plain.gradients.raw_at(level)(y))


def add_step(
    contenders: dict[str, Callable[[], object]], name: str, step: TrainStep, batch: Batch, pairs: Pairs
) -> None:
    """Time chain and update of a step separately."""
    y_neg = step.run_chain(pairs, batch.positions)
    contenders[f"{name}: chain"] = lambda: step.run_chain(pairs, batch.positions)
    contenders[f"{name}: update"] = lambda: step.update(pairs, y_neg)


def add_matching(
    contenders: dict[str, Callable[[], object]],
    name: str,
    experiment: Experiment,
    engine: EngineConfig,
    batch: Batch,
    device: torch.device,
) -> None:
    """Time a step of score matching, of a network of its own."""
    experiment = dataclasses.replace(
        experiment, optim=dataclasses.replace(experiment.optim, objective="score_matching")
    )
    step = TrainStep(TrainState.create(experiment, device), experiment, engine)
    pairs = step.draw(batch.images, batch.positions)
    contenders[f"{name}: matching"] = lambda: step.update(pairs, None)


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


def matrix_rate(dtype: torch.dtype, size: int = 8192, device: torch.device | str = "cuda") -> float:
    """FLOP per second of a large matrix product of random numbers: the practical peak of a device."""
    device = torch.device(device)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> Tensor:
        return left @ right

    for _ in range(3):
        product()
    seconds = statistics.median(timed(product, device) for _ in range(10))
    return 2 * size**3 / seconds


def machine(device: torch.device) -> str:
    """The machine that the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def table(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [f"{figures['machine']}, torch {figures['torch']}, {figures['date']}", f"{figures['setting']}", ""]
    lines += [f"{name:<46} {seconds:10.4f} s" for name, seconds in figures["median_seconds"].items()]
    lines.append("")
    lines += [f"{name:<66} {ratio:6.2f}" for name, ratio in figures["ratios"].items()]
    for name, rate in figures["chain_tflop_per_second"].items():
        peak = figures["peak_mib"][name]
        lines.append(f"{name + ' chain rate':<66} {rate:6.3f} TFLOP/s")
        lines.append(f"{name + ' peak memory, chain / update':<66} {peak['chain']:.0f} / {peak['update']:.0f} MiB")
    return "\n".join(lines)


if __name__ == "__main__":
    entry_point(main)
