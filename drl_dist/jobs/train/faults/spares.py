"""Spare processes: beside each worker one that has imported its libraries, and takes its place when workers restart.

Ray starts worker processes ahead of time where it is asked to, and gives an actor one that was started for the same job
with the same variables. The actor, its place and its GPU are Ray's business as ever; where there is no spare, because
its machine is gone or it was not ready yet, Ray starts a process as it would without.

Importing this needs no torch, for the driver.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray._private.runtime_env.setup_hook import decode_function_key
from ray._private.worker import global_worker
from ray.core.generated.common_pb2 import Language  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

from drl_dist.jobs.common.cluster import in_background

if TYPE_CHECKING:
    from drl_dist.training.loop import StepReport
    from drl_dist.training.state import TrainState

_KEPT_SECONDS = 2**31
"""Longer than any run; Ray ends what is idle with its job, and sooner where memory is short."""
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
        except ImportError:
            # Not to be found before Ray has told the process where the driver looks; the worker imports it then.
            return
        import_worker()

    return import_training


def ask_for_spare() -> None:
    """Let Ray start a process on this machine like the worker that asks.

    Raises:
        grpc.RpcError: Ray does not answer.
    """
    worker: Any = global_worker
    request = PrestartWorkersRequest(
        language=Language.PYTHON,
        job_id=worker.current_job_id.binary(),
        keep_alive_duration_secs=_KEPT_SECONDS,
        num_workers=1,
    )
    # Ray compares the text.
    request.runtime_env_info.serialized_runtime_env = worker.core_worker.get_current_runtime_env()
    channel: Any = init_grpc_channel(f"{worker.node.node_ip_address}:{worker.node.node_manager_port}")
    with channel:
        NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_ANSWER_SECONDS)


@dataclass
class Spare:
    """Asks for a spare process after the first step: a start and a restart need the processor for themselves.

    Args:
        ask: as `ask_for_spare`.
    """

    ask: Callable[[], None] = ask_for_spare
    _is_asked: bool = field(default=False, init=False)

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        if self._is_asked or report.step == report.num_steps:
            return
        self._is_asked = True
        in_background(self._ask)

    def _ask(self) -> None:
        try:
            self.ask()
        except grpc.RpcError as error:
            print(f"Ray starts no spare process ({error}); a restart takes a few seconds longer", flush=True)
