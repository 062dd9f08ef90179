"""How a step fits into the memory of its device: ``engine.memory``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.distributed import ReduceOp, all_reduce, is_initialized

from drl_dist.common.errors import UserError
from drl_dist.config.rules import memory_rules
from drl_dist.config.tree import EngineConfig, Experiment

if TYPE_CHECKING:
    # It imports torch's tools for tracing.
    from drl_dist.training.traced_costs import Costs

TENSORS_SHARE = 0.85
"""Share of a device's memory that tensors may take; the rest is for libraries, gaps between tensors and what estimates
leave out."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What was chosen."""

    engine: EngineConfig
    """Its memory is plain, slices or checkpointing, the latter two with the numbers of images."""
    why: str = ""
    """One line; empty where nothing was to be chosen."""


def fit_memory(
    experiment: Experiment,
    engine: EngineConfig,
    *,
    num_workers: int = 1,
    device: torch.device | None = None,
    has_graphs: bool = False,
    state_bytes: int = 0,
    kept: AbstractContextManager[Costs] | None = None,
) -> Fit:
    """The cheapest way of making a step that fits; with torch.distributed initialised the same on all ranks, of which
    the one with the least memory counts: a collective call.

    Where a GPU's memory is looked at it takes as long as `step_cost`, or, where not all fits at once, several times as
    long, unless the costs are known.

    Args:
        experiment: the science; what it leaves to the data need not be known.
        engine: what is asked for.
        num_workers: that share a batch.
        device: of this worker; None for one that is not at hand, whose memory is known from `engine` alone.
        has_graphs: it is a GPU, where `engine` may capture the chain in a graph; of a device at hand that is known.
        state_bytes: of the state that is to be trained, as far as the device already holds it.
        kept: entered where costs of steps are needed: those that were traced before. It gets the others.

    Raises:
        UserError: nothing fits, or numbers are missing that nothing says.
    """
    for name, got, expected, holds in memory_rules(engine, experiment.model, num_workers):
        if not holds:
            raise UserError(f"config field {name}", got=got, expected=expected, remedy="correct the field")
    is_sliced = engine.memory in ("slices", "checkpointing")
    if engine.memory == "plain" or (is_sliced and engine.chain_images and engine.update_images):
        return Fit(engine=engine)
    limit = _limit(engine, device, state_bytes)
    if limit is None and engine.memory == "auto":
        return Fit(engine=replace(engine, memory="plain"))
    if limit is None:
        if engine.memory == "checkpointing" or engine.chain_images or engine.update_images:
            return Fit(engine=engine)
        raise UserError(
            "config field engine.memory",
            got=f"{engine.memory}, without a limit",
            expected="a size of slices or the memory that they are to fit into",
            remedy="give --engine.chain-images and --engine.update-images, or --engine.memory-gib",
        )
    # Only here must torch's tools for tracing be imported, which takes seconds.
    from drl_dist.training.cost import UntraceableError
    from drl_dist.training.memory_search import MemorySearch

    has_graphs = has_graphs if device is None else device.type == "cuda"
    try:
        with nullcontext({}) if kept is None else kept as known:
            search = MemorySearch(experiment, engine, num_workers, limit, has_graphs and engine.cuda_graph, known)
            chosen, why = search.found()
        return Fit(engine=chosen, why=why)
    except UntraceableError as error:
        if engine.memory != "auto" or engine.memory_gib is not None:
            raise
        why = f"memory: all at once, for what a step takes cannot be told: {error}"
        return Fit(engine=replace(engine, memory="plain"), why=why)


def _limit(engine: EngineConfig, device: torch.device | None, state_bytes: int) -> int | None:
    """Bytes that a step's tensors may take, the state's among them, if it is known."""
    if engine.memory_gib is not None:
        return int(engine.memory_gib * 2**30 * TENSORS_SHARE)
    if device is None or device.type != "cuda":
        return None
    # What this process holds besides, such as another model of a notebook, stays.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused + state_bytes
    if is_initialized():
        least = torch.tensor(free, device=device)
        all_reduce(least, ReduceOp.MIN)
        free = int(least)
    return int(free * TENSORS_SHARE)
