"""What every part is given, and what several of them need: time, a device, rows, batches that fit, precisions."""

from __future__ import annotations

import gc
import statistics
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from benchmarks.accelerator.parts import Clock
from benchmarks.accelerator.record import append
from benchmarks.step import timed
from drl_dist.config.tree import EngineConfig

Precision = Literal["float32", "tf32", "bfloat16"]
"""float32: nothing is rounded to fewer bits; tf32: what convolutions and products of float32 take is rounded to 11
significant bits, which torch by default lets convolutions do; bfloat16: `EngineConfig.precision`."""
Way = Literal["eager", "graph", "compiled", "compiled, graph"]
NEEDS_CUDA = "needs CUDA"
Result = TypeVar("Result")
SAID = ("failed", "skipped", "note")
"""Fields of rows that hold no result, but a reason."""
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")
"""In messages of the driver and of libraries, which raise other errors than the allocator's."""


class Skipped(Exception):
    """A part cannot be done here; its message says why."""


@dataclass(frozen=True)
class Work:
    """What a part is given."""

    name: str
    """Of the part."""
    folder: Path
    """Where the run's results are."""
    device: torch.device
    clock: Clock

    @property
    def is_small(self) -> bool:
        """Whether sizes are tiny: on a CPU, where the parts are tried, not measured."""
        return self.device.type == "cpu"

    def tell(self, **row: Any) -> None:
        """Keep a row of results, and show it with the time left."""
        append(self.folder, self.name, "row", **row)
        shown = ", ".join(f"{key}{':' if key in SAID else ''} {_short(value)}" for key, value in row.items())
        print(f"  [{self.clock.left():4.0f} s left] {shown}", flush=True)


@dataclass(frozen=True)
class Timing:
    """Durations of the same work, in seconds."""

    seconds: float
    """The median."""
    fastest: float
    slowest: float
    runs: int


def timing(
    run: Callable[[], object], device: torch.device, *, at_most: float, rounds: int = 7, is_warm: bool = False
) -> Timing:
    """Time work after one run more, which is not counted.

    Args:
        run: the work.
        device: whose queue is drained before and after each run.
        at_most: seconds after which it is not repeated again; it is timed once at least.
        rounds: runs at most.
        is_warm: whether what it needs has been compiled, captured and allocated, so that every run counts.
    """
    if not is_warm:
        timed(run, device)
    found: list[float] = []
    while not found or (len(found) < rounds and sum(found) + found[-1] < at_most):
        found.append(timed(run, device))
    return Timing(statistics.median(found), min(found), max(found), len(found))


def precisions(device: torch.device) -> list[Precision]:
    """Those that the device has by itself, the fastest first."""
    if device.type == "cpu":
        return ["float32", "bfloat16"]
    found: list[Precision] = ["float32"]
    if torch.cuda.is_tf32_supported():
        found.insert(0, "tf32")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        found.insert(0, "bfloat16")
    return found


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Let float32 be rounded to TF32 in products and convolutions, or not at all, and leave torch as it was.

    The older pair of switches: of the newer `fp32_precision`, setting convolutions alone makes the older ones raise,
    which torch's compiler and `torch.backends.cudnn.flags` read.
    """
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision == "tf32"
        yield
    finally:
        for switch, is_allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = is_allowed


def engine(precision: Precision, way: Way) -> EngineConfig:
    """The engine's config of a way; TF32 is `arithmetic`'s."""
    return EngineConfig(
        precision="bfloat16" if precision == "bfloat16" else "float32",
        compile="always" if "compiled" in way else "never",
        cuda_graph="graph" in way,
    )


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Forget what was compiled, and let a network compiled too often fail, instead of running eagerly unnoticed."""
    import torch._dynamo  # takes a second

    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was short, also where ending a capture failed after that."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def trying(work: Work, **row: Any) -> Iterator[None]:
    """Let what fails be one row, and the part go on: unless memory was short, or the device is of no use any more."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if work.device.type == "cuda":
            # An illegal access leaves a context in which every later call fails: then this raises.
            torch.cuda.synchronize()
            torch.ones(1, device=work.device).item()
        traceback.print_exc()
        work.tell(**row, failed=in_words(error))


def in_words(error: BaseException) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def at_largest_batch(
    batch: int, run: Callable[[int], Result], device: torch.device, tell: Callable[[str], None]
) -> Result:
    """Do work with a batch, halved until the device's memory holds it.

    Args:
        batch: images, to begin with.
        run: the work with so many images.
        device: whose memory is freed between attempts.
        tell: is told of each attempt that failed.

    Raises:
        RuntimeError: one image is too many, or something else went wrong.
    """
    while True:
        try:
            return run(batch)
        except RuntimeError as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
        # Here, where no traceback holds the tensors of the attempt any more.
        free_memory(device)
        tell(f"{batch} images do not fit")
        batch //= 2


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
