"""Peak memory of real steps against what `--estimate` of a training command says."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.accelerator.cases import Case, cases
from benchmarks.accelerator.work import Precision, Work, arithmetic, at_largest_batch, free_memory, precisions, trying
from benchmarks.memory import measured
from drl_dist.config.tree import EngineConfig

_EXPECTED_SECONDS = 12.0
"""Of a case, until one was measured: tracing takes most of it."""


def run(work: Work) -> None:
    """Every case in the fastest precision, then in float32, as far as the time goes."""
    found = cases(is_small=work.is_small)
    available = precisions(work.device)
    longest = 0.0 if work.is_small else _EXPECTED_SECONDS
    for precision in available[:: max(1, len(available) - 1)]:
        for case in found:
            if work.was_tried(case=case.name, precision=precision):
                continue
            if not work.clock.allows(longest):
                work.tell(case=case.name, precision=precision, skipped="no time left")
                continue
            left = work.clock.left()
            with trying(work, case=case.name, precision=precision):
                _compare(work, case, precision)
            longest = max(longest, left - work.clock.left())
        if work.is_small:
            return


def _compare(work: Work, case: Case, precision: Precision) -> None:
    device = work.device
    # Two steps of the chain hold as much as thirty.
    mcmc = case.experiment.mcmc
    short = replace(case.experiment, mcmc=replace(mcmc, num_chain_steps=min(2, mcmc.num_chain_steps)))
    case = Case(case.name, short, case.alike)

    def compare(batch: int) -> None:
        free_memory(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        engine = EngineConfig(precision="bfloat16" if precision == "bfloat16" else "float32", memory="plain")
        found = measured(case.of(batch), engine, device.type)
        row = {"case": case.name, "batch": batch, "precision": precision}
        for part, sizes in found.items():
            ratio = sizes["real"] / sizes["estimated"]
            work.tell(**row, what=part, estimated=sizes["estimated"], real=sizes["real"], ratio=ratio)
        if device.type == "cuda":
            work.tell(**row, what="reserved", real=torch.cuda.max_memory_reserved(device))

    with arithmetic(precision):
        at_largest_batch(
            case.batch, compare, device, lambda what: work.tell(case=case.name, precision=precision, note=what)
        )
    free_memory(device)
