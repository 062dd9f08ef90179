"""Spare processes: beside each worker one that has imported its libraries, and takes its place when workers restart.

Ray starts worker processes ahead of time where it is asked to, and gives an actor one that was started for the same job
with the same variables. The actor, its place and its GPU are Ray's business as ever; where there is no spare, because
its machine is gone or it was not ready yet, Ray starts a process as it would without. What such a process imports is in
`drl_dist.jobs.train.start`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drl_dist.jobs.common.cluster import in_background

if TYPE_CHECKING:
    from drl_dist.training.loop import StepReport
    from drl_dist.training.state import TrainState

_KEPT_SECONDS = 2**31
"""Longer than any run; Ray ends what is idle with its job, and sooner where memory is short and its nodes were started
with `drl_dist.localhost.ray_head.IDLE_FIRST`."""
_ANSWER_SECONDS = 30


def ask_for_spare() -> None:
    """Let Ray start a process on this machine like the worker that asks.

    Raises:
        grpc.RpcError: Ray does not answer.
        ImportError: this Ray has no such request.
    """
    # None of it is Ray's public interface: without it, a run is to go on without spare processes.
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.worker import global_worker
    from ray.core.generated import common_pb2, node_manager_pb2
    from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

    worker: Any = global_worker
    kinds: Any = common_pb2
    messages: Any = node_manager_pb2
    request = messages.PrestartWorkersRequest(
        language=kinds.Language.PYTHON,
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
        except Exception as error:  # noqa: BLE001 - nobody asks for the result of this thread
            # Those of grpc are tables of several lines.
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"Ray starts no spare process ({why}); a restart takes a few seconds longer", flush=True)
