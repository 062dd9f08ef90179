"""Ray Train without what a run here has no use for, and the process group that its workers join themselves.

Every process that Ray Train starts imports it for seconds. `ray.train.torch` would import torch besides, in the driver
and in Ray's controller too, before the first worker starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

if TYPE_CHECKING:
    import torch

COLLECTIVE_SECONDS = 1800
"""Longest wait of one rank for another: sampling or a first compilation may take that long on slow machines."""


class Trainer(DataParallelTrainer):
    """Ray Train's trainer, with fewer actors.

    Args:
        is_nested: whether the job continues when Ray's controller has died. Otherwise Ray frees the places of the
            workers when the job ends, and needs no actor that watches the controller for it.
        can_grow: whether the cluster may get further machines if it is asked.
        arguments: of Ray's own trainer.
    """

    def __init__(self, *arguments: Any, is_nested: bool, can_grow: bool, **options: Any) -> None:
        # One actor for data sets of Ray Data, of which there are none.
        self._unused = (DatasetsCallback,) if is_nested else (DatasetsCallback, PlacementGroupCleanerCallback)
        self._can_grow = can_grow
        super().__init__(*arguments, **options)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [one for one in super()._create_default_callbacks() if not isinstance(one, self._unused)]

    def _initialize_and_run_controller(self, **options: Any) -> ray.train.Result:
        if not self._can_grow and type(options["scaling_policy"]) is FixedScalingPolicy:
            options["scaling_policy"] = _FixedWorkers(self.scaling_config)
        return super()._initialize_and_run_controller(**options)


class _FixedWorkers(FixedScalingPolicy):
    """As many workers as were asked for, on machines that nobody can be asked to add to."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class GroupConfig(BackendConfig):
    """Lets the workers of a `Trainer` call `process_group`."""

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
