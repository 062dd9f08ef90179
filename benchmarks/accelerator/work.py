"""What every part is given, and what several of them need: time, a device, rows, batches that fit, precisions."""

from __future__ import annotations

import gc
import statistics
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.accelerator.parts import Clock
from benchmarks.accelerator.record import append
from benchmarks.step import timed
from drl_dist.common.amounts import counted
from drl_dist.config.tree import EngineConfig

Precision = Literal["float32", "tf32", "bfloat16"]
"""float32: nothing is rounded to fewer bits; tf32: what convolutions and products of float32 take is rounded to 11
significant bits, which torch by default lets convolutions do; bfloat16: `EngineConfig.precision`."""
Way = Literal["eager", "graph", "compiled", "compiled, graph"]
NEEDS_CUDA = "needs CUDA"
SAID = ("failed", "skipped", "note")
"""Fields of rows that hold no result, but a reason."""
_MOST_FAILURES = 2
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")
"""In messages of the driver and of libraries, which raise other errors than the allocator's."""
_BROKEN_CAPTURE = ("captur", "StreamCapture")
"""In messages about a capture whose end failed: torch's allocator goes on as if it lasted."""


class Skipped(Exception):
    """A part cannot be done here; its message says why."""


class UnusableError(Exception):
    """This process cannot use the device any more: another one is to go on with the part."""


@dataclass(frozen=True)
class Work:
    """What a part is given."""

    name: str
    """Of the part."""
    folder: Path
    """Where the run's results are."""
    device: torch.device
    clock: Clock
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What this part has found, also in earlier processes, which could not use the device any more."""
    earlier: int = field(init=False)
    """How many rows are those of earlier processes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "earlier", len(self.rows))

    def was_tried(self, **row: Any) -> bool:
        """Whether an earlier process has rows with these fields: what failed there is not tried again."""
        return any(row.items() <= known.items() for known in _hashed(self.rows[: self.earlier]))

    def keeps_failing(self, way: Way) -> bool:
        """Whether a way has failed so often in this part that it is not tried again."""
        return sum("failed" in row and row.get("way") == way for row in self.rows) >= _MOST_FAILURES

    @property
    def is_small(self) -> bool:
        """Whether sizes are tiny: on a CPU, where the parts are tried, not measured."""
        return self.device.type == "cpu"

    def tell(self, **row: Any) -> None:
        """Keep a row of results, and show it with the time left."""
        append(self.folder, self.name, "row", **row)
        self.rows.append(row)
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
    which torch's compiler reads.
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
    return any(
        isinstance(one, torch.OutOfMemoryError) or any(word in str(one) for word in _OUT_OF_MEMORY)
        for one in _all_of(error)
    )


def _is_of_capture(error: BaseException) -> bool:
    return any(
        isinstance(one, RuntimeError) and any(word in str(one) for word in _BROKEN_CAPTURE) for one in _all_of(error)
    )


def _all_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def trying(work: Work, **row: Any) -> Iterator[None]:
    """Let what fails be one row, and the part go on.

    Raises:
        RuntimeError: memory was short; a smaller batch may do.
        UnusableError: what failed has left a device that this process cannot use.
    """
    try:
        yield
    except (Skipped, UnusableError):
        raise
    except Exception as error:
        is_lost = _is_of_capture(error) or not is_usable(work.device)
        if is_out_of_memory(error) and not is_lost:
            raise
        traceback.print_exc()
        work.tell(**row, failed=in_words(error))
        if is_lost:
            raise UnusableError(in_words(error)) from error


def is_usable(device: torch.device) -> bool:
    """Whether a device still computes: not after an illegal access."""
    if device.type == "cpu":
        return True
    try:
        torch.cuda.synchronize()
        torch.ones(1, device=device).item()
    except RuntimeError:
        return False
    return True


def in_words(error: BaseException) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def at_largest_batch(
    batch: int, run: Callable[[int], object], device: torch.device, tell: Callable[[str], None]
) -> None:
    """Do work with a batch, halved until the device's memory holds it.

    Args:
        batch: images, to begin with.
        run: the work with so many images.
        device: whose memory is freed between attempts.
        tell: is told of each attempt that failed.

    Raises:
        RuntimeError: something else went wrong.
    """
    while batch:
        try:
            run(batch)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Here, where no traceback holds the tensors of the attempt any more.
        free_memory(device)
        tell(f"{counted(batch, 'image')} {'does' if batch == 1 else 'do'} not fit")
        batch //= 2


def _hashed(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows without what cannot be compared as a set, such as lists."""
    for row in rows:
        yield {key: value for key, value in row.items() if isinstance(value, str | int | float | bool)}


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
