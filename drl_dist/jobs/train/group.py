"""The process group of the training workers, which they join themselves.

`ray.train.torch` would import torch, and much of Ray Train besides, in the driver and in Ray's controller too: seconds
before the first worker starts, and again in every worker.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import ray.train
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

if TYPE_CHECKING:
    import torch

COLLECTIVE_SECONDS = 1800
"""Longest wait of one rank for another: sampling or a first compilation may take that long on slow machines."""


class GroupConfig(BackendConfig):
    """Lets the workers of a `DataParallelTrainer` call `process_group`."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Meeting


class _Meeting(Backend):
    """Tells every worker where the first one waits for it."""

    # As the backend for torch has it: NCCL wants to see the GPUs of all ranks of a machine.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_remember, address, port)


def _remember(address: str, port: int) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)


@contextmanager
def process_group(*, use_gpu: bool) -> Iterator[torch.device]:
    """Join the other workers over NCCL or gloo; this worker's device. A collective call of all ranks.

    Only a body that ends well leaves the group: after a failure the others may never come, and the process is killed.
    """
    import torch
    from torch import distributed

    context = ray.train.get_context()
    device = torch.device("cpu")
    if use_gpu:
        from ray.train.torch import get_device

        device = get_device()
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if use_gpu else "gloo",
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )
    yield device
    distributed.destroy_process_group()
