"""What Ray calls in every worker: at the start of its process, and to train. Importing this needs no torch, for driver
and controller.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import ray
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray._private.runtime_env.setup_hook import decode_function_key
from ray._private.worker import global_worker

from drl_dist.common.imports import no_collection

if TYPE_CHECKING:
    from drl_dist.jobs.train.task import WorkerTask


_ANSWER_SECONDS = 30


def imports_at_start() -> dict[str, str]:
    """Variables with which the processes of workers import what training needs before they are given any work.

    None where the job has a hook of its own for the start of its processes, which would not be called any more.

    Raises:
        ray.exceptions.RpcError, ray.exceptions.RaySystemError: the cluster does not answer.
    """
    of_job = ray.get_runtime_context().runtime_env.get("env_vars") or {}
    if WORKER_PROCESS_SETUP_HOOK_ENV_VAR in {*os.environ, *of_job}:
        return {}
    key = global_worker.function_actor_manager.export_setup_func(_importing(), timeout=_ANSWER_SECONDS)
    return {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: decode_function_key(key)}


def _importing() -> Callable[[], None]:
    """What a process does at its start."""

    # Here and not above: Ray sends a function of this kind whole, while one that has to be imported first would end the
    # process wherever that fails.
    def import_training() -> None:
        try:
            from drl_dist.jobs.train.start import import_worker

            import_worker()
        except Exception:  # noqa: BLE001
            # The package may not be found before Ray has told the process where the driver looks. Whatever else is
            # wrong is raised when the worker imports it again, and ends the run; here it would end every process.
            pass

    return import_training


def run_task(task: WorkerTask) -> int:
    """Train one rank; see `drl_dist.jobs.train.worker.train_worker`."""
    with no_collection():
        from drl_dist.jobs.train.worker import train_worker

    return train_worker(task)


def import_worker() -> None:
    """Import what a worker does, in a process that is no worker yet, and whose GPU is not assigned yet."""
    with no_collection():
        import ray.train.v2._internal.execution.worker_group.worker  # noqa: F401
        import torch._dynamo  # noqa: F401 - what DDP and optimisers import when they are made

        import drl_dist.jobs.train.worker  # noqa: F401
