"""A run with fewer workers than it wants: it goes on with those it has, and takes in more at a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ray._private.state import state as cluster_state

from drl_dist.config.tree import RunConfig

if TYPE_CHECKING:
    # Ray's controller imports this file, and does without torch.
    from drl_dist.jobs.train.metrics import Clock
    from drl_dist.training.loop import StepReport
    from drl_dist.training.state import TrainState


class MoreWorkersError(RuntimeError):
    """No failure: the workers restart from the checkpoint that is just complete, and more of them.

    Args:
        world_size: workers there are.
        could_join: workers that the cluster has room for beside them.
    """

    def __init__(self, world_size: int, could_join: int) -> None:
        self.world_size, self.could_join = world_size, could_join
        super().__init__(f"{could_join} more workers can join the {world_size} there are")

    def __reduce__(self) -> tuple[object, ...]:
        return (MoreWorkersError, (self.world_size, self.could_join))


def free_by_node() -> Mapping[str, Mapping[str, float]]:
    """What each node of the cluster has left, by its id."""
    return cluster_state.available_resources_per_node()


@dataclass
class Growth:
    """Ends the workers of a run that could have more, whenever a checkpoint is complete; for the first rank.

    Ray would resize a group at any time, and the steps since the last checkpoint would be made again.

    Args:
        clock: of this worker; tells when a checkpoint is complete.
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
            MoreWorkersError: the cluster has room for more of the run's workers.
        """
        if self.clock.checkpoint_at == self._seen or report.step == report.num_steps:
            return
        self._seen = self.clock.checkpoint_at
        could_join = min(self.room(), self.run.num_workers - self.world_size)
        if could_join > 0:
            raise MoreWorkersError(self.world_size, could_join)

    def room(self) -> int:
        """Workers that could be started now."""
        needs = {"CPU": self.run.cpus_per_worker} | ({"GPU": 1} if self.run.use_gpu else {})
        return sum(min(int(has.get(name, 0) // much) for name, much in needs.items()) for has in self.free().values())
