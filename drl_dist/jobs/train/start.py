"""The function that Ray Train calls in every worker. Importing it needs no torch, for driver and controller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drl_dist.common.imports import no_collection

if TYPE_CHECKING:
    from drl_dist.jobs.train.task import WorkerTask


def run_task(task: WorkerTask) -> int:
    """Train one rank; see `drl_dist.jobs.train.worker.train_worker`."""
    with no_collection():
        from drl_dist.jobs.train.worker import train_worker

    return train_worker(task)


def import_worker() -> None:
    """Import what a worker does, in a process that is no worker yet."""
    with no_collection():
        import ray.train.v2._internal.execution.worker_group.worker  # noqa: F401
        import torch._dynamo  # noqa: F401 - what DDP and optimisers import when they are made

        import drl_dist.jobs.train.worker  # noqa: F401
