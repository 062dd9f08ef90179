"""Where the GPU waits: a profile of chain and update, eager and as a graph, kept as a trace for a browser."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.accelerator.cases import Case, cases
from benchmarks.accelerator.trace import busiest, idle_share, kernels_of, largest_gap, read_trace
from benchmarks.accelerator.work import (
    NEEDS_CUDA,
    Way,
    Work,
    arithmetic,
    at_largest_batch,
    engine,
    free_memory,
    precisions,
    trying,
)
from benchmarks.step import random_batch
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep

_CHAIN_STEPS, _TOP, _CASES = 4, 12, 4
"""A few steps of the chain show what all of them do, and make a trace that a browser opens."""


def run(work: Work) -> None:
    """Profile the first cases, eagerly and as a graph."""
    ways: list[Way] = ["eager"] if work.is_small else ["eager", "graph"]
    for case in cases(is_small=work.is_small)[:_CASES]:
        for way in ways:
            if work.was_tried(case=case.name, way=way):
                continue
            if work.clock.allows(0.0 if work.is_small else 8.0):
                _profile_case(work, case, way)
            else:
                work.tell(case=case.name, way=way, skipped="no time left")
    if work.is_small:
        work.tell(case="all", way="all", what="kernels", skipped=NEEDS_CUDA)


def _profile_case(work: Work, case: Case, way: Way) -> None:
    precision, mcmc = precisions(work.device)[0], case.experiment.mcmc
    few = replace(mcmc, num_chain_steps=min(_CHAIN_STEPS, mcmc.num_chain_steps))
    case = replace(case, experiment=replace(case.experiment, mcmc=few))
    row: dict[str, object] = {"case": case.name, "precision": precision, "way": way}

    def profiled(batch: int) -> None:
        state = TrainState.create(case.of(batch), work.device)
        step = TrainStep(state, case.of(batch), engine(precision, way))
        _profile(work, step, row | {"batch": batch}, f"trace-{case.name.replace(':', '-')}-{way}.json.gz")

    def told(what: str) -> None:
        work.tell(**row, note=what)

    with trying(work, **row), arithmetic(precision):
        at_largest_batch(case.batch, profiled, work.device, told)
    free_memory(work.device)


def _profile(work: Work, step: TrainStep, row: dict[str, object], file: str) -> None:
    device = work.device
    images = random_batch(step.experiment, device)
    # Twice: cuDNN has chosen its kernels, the graph is captured, and the optimiser has its moments.
    for _ in range(2):
        step(images)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    with profile(activities=activities) as profiler:
        step(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    profiler.export_chrome_trace(str(work.folder / file))
    work.tell(**row, what="trace", file=file)
    if device.type != "cuda":
        return
    kernels = kernels_of(read_trace(work.folder / file))
    if not kernels:
        work.tell(**row, what="kernels", failed="the profiler saw no kernel")
        return
    work.tell(
        **row,
        what="kernels",
        kernels=len(kernels),
        idle_share=idle_share(kernels),
        largest_gap_us=largest_gap(kernels),
        busy_ms=sum(kernel.duration for kernel in kernels) / 1e3,
    )
    for name, total, count in busiest(kernels, _TOP):
        work.tell(**row, what="kernel", name=name, ms=total / 1e3, count=count)
