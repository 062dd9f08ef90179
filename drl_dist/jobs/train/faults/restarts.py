"""What runs in Ray's controller: which failures of workers end a run, and which are answered by a restart from the
newest checkpoint; and the age of that checkpoint.

Importing this needs no torch, so that the controller, and with it every worker, starts sooner.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray._private.state import state as cluster_state
from ray.exceptions import RaySystemError, RayTaskError, RpcError
from ray.train import Checkpoint, UserCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.common.prometheus import Exporter
from drl_dist.training.guard import DivergedError

if TYPE_CHECKING:
    # Ray's controller imports this file, and does without torch.
    from drl_dist.jobs.train.metrics import Clock
    from drl_dist.jobs.train.stop import KeyInStore
    from drl_dist.training.loop import StepReport
    from drl_dist.training.state import TrainState

MAX_FAILURES = 5
"""Restarts without a further checkpoint between them, before the job gives up."""

# What a restart cannot mend; the rest may be a dead worker, a lost connection or a full disk, or follow from one.
FINAL_ERRORS = (
    UserError,
    DivergedError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    TypeError,
    ValueError,
)


class NoProgressError(RuntimeError):
    """Workers died again and again before they came to a further checkpoint.

    Args:
        failures: one after another.
        last: what the last of them was.
    """

    def __init__(self, failures: int, last: str) -> None:
        self.failures, self.last = failures, last
        super().__init__(
            f"training: workers failed {failures} times without a further checkpoint, the last time with {last}; "
            "look at the workers' logs, or write checkpoints more often (--checkpoint.every-steps), and run the same "
            "command again"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (NoProgressError, (self.failures, self.last))


class OutdatedListError(RuntimeError):
    """Ray Train's list names a later checkpoint than the newest that verifies; the job starts it from scratch.

    Ray would list that folder twice once it is written again, and delete it with the first of the two.

    Args:
        step: of the newest checkpoint that verifies, None if there is none.
    """

    def __init__(self, step: int | None) -> None:
        self.step = step
        super().__init__(f"Ray Train's list names a later checkpoint than that of step {step}")

    def __reduce__(self) -> tuple[object, ...]:
        return (OutdatedListError, (self.step,))


class RestartPolicy(UserCallback):
    """In Ray's controller, which itself restarts without end: a run of days outlives any number of machines.

    Errors that a restart cannot mend end the run, and so do failures one after another without a checkpoint between
    them. The others are reported in one line.

    Args:
        restart: a key that is set when other workers are to start; see `drl_dist.jobs.train.start_up`.
    """

    def __init__(self, restart: KeyInStore | None = None) -> None:
        self._failures, self._restart = 0, restart

    def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """A checkpoint is in storage: the run gets on."""
        if checkpoint is not None:
            self._failures = 0

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Tell what failed, or end the run.

        Raises:
            NoProgressError: one failure too many since the last checkpoint.
            OutdatedListError: as a worker raised it.
        """
        for error in worker_exceptions.values():
            if isinstance(error, (*FINAL_ERRORS, OutdatedListError)):
                raise error
        for error in worker_exceptions.values():
            if isinstance(error, ScaleUpError):
                print(f"{error}; all restart from the checkpoint that is just complete", flush=True)
                self._tell_restart()
                return
        self._failures += 1
        reasons = {rank: _reason(error) for rank, error in sorted(worker_exceptions.items())}
        if self._failures > MAX_FAILURES:
            raise NoProgressError(self._failures, "; ".join(reasons.values()))
        for rank, what in reasons.items():
            print(
                f"worker {rank} failed ({what}); Ray Train restarts from the newest checkpoint (restart "
                f"{self._failures} of at most {MAX_FAILURES} without a further checkpoint)",
                flush=True,
            )
        self._tell_restart()

    def _tell_restart(self) -> None:
        # Without the key the driver says nothing of this start; that must not end the run.
        with contextlib.suppress(RpcError, RaySystemError):
            if self._restart is not None:
                self._restart.write()


class CheckpointTimes(UserCallback):
    """In Ray's controller, which outlives workers: exports when the newest checkpoint was complete.

    Args:
        run: its name.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._exporter: Exporter | None = None

    def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """A checkpoint is in storage."""
        if checkpoint is None:
            return
        # Not before: this object is made in the driver.
        self._exporter = self._exporter or Exporter(self._run)
        self._exporter.set(checkpoint_timestamp_seconds=time.time())


def _reason(error: Exception) -> str:
    # From another actor, such as the one by which ranks wait for each other, an error comes wrapped in a traceback.
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, WorkerHealthCheckFailedError):
        # Its own message is what the worker was; a death is in the error of its process.
        cause = cause.health_check_failure
    text = " ".join(str(cause).split())
    _, _, why = text.partition("The actor is dead because ")
    return f"{type(cause).__name__}: {(why or text)[:300]}"


class ScaleUpError(RuntimeError):
    """No failure: the workers restart from the checkpoint that is just complete, and more of them.

    Args:
        world_size: workers there are.
        could_join: workers that the cluster has room for beside them.
    """

    def __init__(self, world_size: int, could_join: int) -> None:
        self.world_size, self.could_join = world_size, could_join
        super().__init__(f"{counted(could_join, 'more worker')} can join the {world_size} there are")

    def __reduce__(self) -> tuple[object, ...]:
        return (ScaleUpError, (self.world_size, self.could_join))


def free_by_node() -> Mapping[str, Mapping[str, float]]:
    """What each node of the cluster has left, by its id."""
    return cluster_state.available_resources_per_node()


@dataclass
class ScaleUp:
    """Ends the workers of a run that could have more, whenever a checkpoint is complete; for the first rank.

    Ray would resize a group at any time, and the steps since the last checkpoint would be made again.

    Args:
        clock: of this worker; knows when a checkpoint is complete.
        free: as `free_by_node`.
    """

    run: RunConfig
    world_size: int
    clock: Clock
    free: Callable[[], Mapping[str, Mapping[str, float]]] = free_by_node
    _seen: float = field(init=False)

    def __post_init__(self) -> None:
        self._seen = self.clock.checkpoint_at

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Nothing, if there is nothing to gain.

        Raises:
            ScaleUpError: the cluster has room for more of the run's workers.
        """
        if self.clock.checkpoint_at == self._seen or report.step == report.num_steps:
            return
        self._seen = self.clock.checkpoint_at
        could_join = min(self.room(), self.run.num_workers - self.world_size)
        if could_join > 0:
            raise ScaleUpError(self.world_size, could_join)

    def room(self) -> int:
        """Workers that could be started now."""
        needs = {"CPU": self.run.cpus_per_worker} | ({"GPU": 1} if self.run.use_gpu else {})
        return sum(min(int(has.get(name, 0) // much) for name, much in needs.items()) for has in self.free().values())
