"""Rates of forward, image gradient, chain and update, in every precision and way, against the peak of this run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from benchmarks.accelerator.cases import Case, cases
from benchmarks.accelerator.work import (
    NEEDS_CUDA,
    Precision,
    Timing,
    Way,
    Work,
    arithmetic,
    at_largest_batch,
    engine,
    free_memory,
    fresh_compiler,
    precisions,
    timing,
    trying,
)
from benchmarks.floor import BareConvolutions, convolutions_of
from benchmarks.step import DTYPES, matrix_rate, random_batch, timed
from drl_dist.training.cost import count_flop
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep

_MOST_OF_A_PART = 0.15
"""Share of the time left that one measurement may take; longer ones are not begun."""
_CASES_FIRST = 3
"""Cases that are measured in all precisions before anything is compiled."""
_FEW_BLOCKS = 2
_COMPILED_BLOCK_SECONDS = 4.0
"""A guess at the first compilation of one residual block, chain and update, until one was measured."""


def run(work: Work) -> None:
    """The matrix rates; every case in the fastest precision; some in the others; compiled; the rest in the others."""
    peaks, fitting = _peaks(work), dict[str, int]()
    found, (fastest, *others) = cases(is_small=work.is_small), peaks
    ways: list[Way] = ["eager"] if work.is_small else ["eager", "graph"]
    for case in found:
        _measure(work, case, fastest, ways, peaks[fastest], fitting)
    for precision in others:
        for case in found[:_CASES_FIRST]:
            _measure(work, case, precision, ways[-1:], peaks[precision], fitting)
    if work.is_small:
        work.tell(case="all", way="graph", skipped=NEEDS_CUDA)
        work.tell(case="all", way="compiled", skipped=NEEDS_CUDA)
    else:
        _compile_all(work, found, fastest, peaks[fastest], fitting)
    for precision in others:
        for case in found[_CASES_FIRST:]:
            _measure(work, case, precision, ways[-1:], peaks[precision], fitting)


def _peaks(work: Work) -> dict[Precision, float]:
    """FLOP per second of a large product in each precision, the fastest first."""
    found: dict[Precision, float] = {}
    for precision in precisions(work.device):
        with arithmetic(precision):
            found[precision] = matrix_rate(_dtype(precision), 512 if work.is_small else 8192, work.device)
        free_memory(work.device)
        work.tell(what="matrix peak", precision=precision, tflops=found[precision] / 1e12)
    return found


def _measure(
    work: Work, case: Case, precision: Precision, ways: list[Way], peak: float, fitting: dict[str, int]
) -> None:
    """Measure a case, with the largest batch that fits.

    Args:
        fitting: batches that were found to fit so far, by case; this one's is added.
    """
    todo: list[Way] = []
    for way in ways:
        row = {"case": case.name, "precision": precision, "way": way}
        if work.keeps_failing(way):
            work.tell(**row, skipped="this way has failed before")
        elif not work.was_tried(**row):
            todo.append(way)
    if not todo:
        return
    if not work.clock.allows(1.0):
        work.tell(case=case.name, precision=precision, skipped="no time left")
        return

    def measure(batch: int) -> None:
        with trying(work, case=case.name, precision=precision, way=todo[0]):
            measuring = _Measuring(work, case, batch, precision, peak)
            for way in todo:
                with trying(work, case=case.name, precision=precision, way=way):
                    measuring.way(way)
        fitting[case.name] = batch

    def told(what: str) -> None:
        work.tell(case=case.name, precision=precision, note=what)

    with arithmetic(precision), fresh_compiler():
        at_largest_batch(fitting.get(case.name, case.batch), measure, work.device, told)
    free_memory(work.device)


def _compile_all(work: Work, found: list[Case], precision: Precision, peak: float, fitting: dict[str, int]) -> None:
    """Compile the cases with few blocks, which compile soon and gain as much, then as they are.

    What each took says which of the others there is time for.
    """
    per_block = _COMPILED_BLOCK_SECONDS
    for case in compiled_cases(found):
        expected = per_block * case.num_blocks
        if not work.clock.allows(1.5 * expected):
            work.tell(case=case.name, way="compiled", skipped=f"compiling would take about {expected:.0f} s")
            continue
        left = work.clock.left()
        ways: list[Way] = ["graph", "compiled, graph", "compiled"]
        _measure(work, case, precision, ways if case not in found else ways[1:], peak, fitting)
        per_block = max((left - work.clock.left()) / case.num_blocks, 0.25 * per_block)


def compiled_cases(found: list[Case]) -> list[Case]:
    """The cases with at most `_FEW_BLOCKS` blocks a level, each size once, then those with more, small ones first."""
    few: dict[object, Case] = {}
    many: list[Case] = []
    for case in found:
        model, name, changed = case.experiment.model, case.name, case
        if model.num_res_blocks > _FEW_BLOCKS:
            many.append(case)
            model = replace(model, num_res_blocks=_FEW_BLOCKS)
            changed = Case(f"{name}, N = {_FEW_BLOCKS}", replace(case.experiment, model=model))
        few.setdefault((model, case.experiment.mcmc, case.batch), changed)
    return [*few.values(), *sorted(many, key=lambda case: case.num_blocks)]


@dataclass
class _Measuring:
    """One case with one batch in one precision."""

    work: Work
    case: Case
    batch: int
    precision: Precision
    peak: float

    def __post_init__(self) -> None:
        device, self.experiment = self.work.device, self.case.of(self.batch)
        self.state = TrainState.create(self.experiment, device)
        self.images = random_batch(self.experiment, device)
        step = TrainStep(self.state, self.experiment, engine(self.precision, "eager"))
        self.pairs = step.draw(self.images.images, self.images.positions)
        self.flop = count_flop(lambda: step.gradients.raw_at(self.pairs.level)(self.pairs.x_noisy))

    def way(self, way: Way) -> None:
        """Measure one way and tell its rates."""
        work, device = self.work, self.work.device
        step = TrainStep(self.state, self.experiment, engine(self.precision, way))
        pairs, positions = self.pairs, self.images.positions
        first = timed(lambda: step.gradients.raw_at(pairs.level)(pairs.x_noisy), device)
        gradient = self._timed(lambda: step.gradients.raw_at(pairs.level)(pairs.x_noisy), is_warm=True)
        row = {"case": self.case.name, "batch": self.batch, "precision": self.precision, "way": way}
        if self.case.alike:
            row["alike"] = list(self.case.alike)
        if "compiled" in way:
            row["first_seconds"] = first
        work.tell(**row, what="gradient", **self._rate(gradient, self.flop))
        if way == "eager":
            self._eager_alone(step, row)
        num_gradients = max(self.experiment.mcmc.chain_steps) + (self.experiment.mcmc.start == "tweedie")
        most = _MOST_OF_A_PART * work.clock.left()
        if (expected := num_gradients * gradient.seconds) > most:
            work.tell(**row, what="chain", skipped=f"it would take about {expected:.0f} s")
            return
        ends: list[torch.Tensor] = []
        chain = self._timed(lambda: ends.append(step.run_chain(pairs, positions)), is_warm=expected > 0.5)
        work.tell(**row, what="chain", **self._rate(chain, num_gradients * self.flop))
        self._update(step, ends[-1], row, way, chain.seconds)

    def _eager_alone(self, step: TrainStep, row: dict[str, object]) -> None:
        """The forward, and the bare convolutions in both layouts."""
        work, network, pairs = self.work, self.state.network, self.pairs
        dtype = _dtype(self.precision)
        with torch.no_grad():
            prepared = network.prepare(pairs.level, dtype)

        @torch.no_grad()
        def forward() -> object:
            return network.evaluate(prepared, pairs.x_noisy)

        work.tell(**row, what="forward", **self._rate(self._timed(forward), count_flop(forward)))
        found = convolutions_of(functools.partial(network.evaluate, prepared, pairs.x_noisy))
        for name, layout in (("channels-last", torch.channels_last), ("contiguous", torch.contiguous_format)):
            bare = BareConvolutions(found, dtype, work.device, layout)
            once = functools.partial(bare.run, 1)
            seconds = self._timed(once)
            work.tell(**row, what=f"bare convolutions, {name}", **self._rate(seconds, count_flop(once)))
            del bare, once
            free_memory(work.device)

    def _update(self, step: TrainStep, y_neg: torch.Tensor, row: dict[str, object], way: Way, chain: float) -> None:
        """The update, and of a U-Net a step of score matching."""
        pairs, optim = self.pairs, self.experiment.optim
        self._stepped(lambda: step.update(pairs, y_neg), row, "update", way, chain)
        if self.experiment.model.network == "unet":
            experiment = replace(self.experiment, optim=replace(optim, objective="score_matching"))
            matching = TrainStep(self.state, experiment, engine(self.precision, way))
            self._stepped(lambda: matching.update(pairs, None), row, "score matching", way, 0.0)

    def _stepped(self, run: Callable[[], object], row: dict[str, object], what: str, way: Way, before: float) -> None:
        """Time an update that comes after so many seconds of a chain."""
        first = timed(run, self.work.device)
        # What is compiled has the operations of what is not, but the counter sees only some of them.
        flop = 0 if "compiled" in way else count_flop(run)
        found = self._timed(run, is_warm=True)
        rate = self.batch / (before + found.seconds)
        took = {"first_seconds": first} if "compiled" in way else {}
        self.work.tell(**(row | took), what=what, **self._rate(found, flop), images_per_second=rate)

    def _timed(self, run: Callable[[], object], *, is_warm: bool = False) -> Timing:
        most = min(1.5, 0.01 * self.work.clock.left())
        return timing(run, self.work.device, at_most=most, rounds=5, is_warm=is_warm)

    def _rate(self, found: Timing, flop: float) -> dict[str, float | int]:
        row: dict[str, float | int] = {
            "seconds": found.seconds,
            "fastest": found.fastest,
            "slowest": found.slowest,
            "runs": found.runs,
        }
        if flop:
            rate = flop / found.seconds
            row |= {"flop": float(flop), "tflops": rate / 1e12, "share_of_peak": rate / self.peak}
        return row


def _dtype(precision: Precision) -> torch.dtype:
    return DTYPES["bfloat16" if precision == "bfloat16" else "float32"]
