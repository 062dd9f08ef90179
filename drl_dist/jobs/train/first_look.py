"""A look at a worker's device before a run has a record: what fits there in no way is told while nothing is written.

Workers look once more, at what all of them have. Importing this needs no torch, for the driver.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import ray
from ray.exceptions import RayTaskError

from drl_dist.checkpoints.run_record import has_record
from drl_dist.common.errors import UserError
from drl_dist.common.imports import no_collection
from drl_dist.common.waiting import Waiting
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.common.cluster import in_background, room_wanted


def first_look(run: RunConfig, waiting: Waiting) -> dict[str, dict[str, int]]:
    """What steps cost, as far as it was traced for this; nothing where there is nothing to choose, or a record already.

    Args:
        run: whose workers the cluster has room for.
        waiting: told that it takes a while.

    Raises:
        UserError: no way of making a step fits into the device that Ray gives to one worker.
    """
    if not _is_chosen(run) or has_record(run.url):
        return {}
    one = partial(room_wanted, 1, cpus=run.cpus_per_worker, gpus=int(run.use_gpu))
    waiting.begin(lambda: f"choosing how a step fits into memory: {one()}")
    # Wherever a worker could be: the places that Ray Tune keeps for a trial have no room for it.
    options = {"num_cpus": run.cpus_per_worker, "num_gpus": int(run.use_gpu), "scheduling_strategy": "DEFAULT"}
    look = ray.remote(**options)(_costs_there).remote(run)
    try:
        # In a thread of its own: Ray loses the signal that comes while it waits.
        return in_background(lambda: ray.get(look)).result()
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _is_chosen(run: RunConfig) -> bool:
    """Whether it depends on memory how a step is made, or on numbers that lack."""
    engine = run.engine
    if engine.memory == "plain" or (engine.chain_images and engine.update_images):
        return False
    return run.use_gpu or engine.memory_gib is not None or engine.memory == "slices"


def _costs_there(run: RunConfig) -> dict[str, dict[str, int]]:
    """What is traced to choose on this device."""
    with no_collection():
        import torch

        from drl_dist.training.memory import fit_memory
        from drl_dist.training.traced_costs import worth_keeping

    costs: dict[str, dict[str, int]] = {}
    device = torch.device("cuda" if run.use_gpu else "cpu")
    # Of a run with workers that come and go, when all are there: their shares are then the smallest.
    fit_memory(run.experiment, run.engine, num_workers=run.num_workers, device=device, kept=nullcontext(costs))
    return worth_keeping(costs)
