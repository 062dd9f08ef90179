"""What steps cost, from which workers choose how a step fits into memory: traced once in a run, by the first one."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

from drl_dist.checkpoints.step_costs import read_step_costs, write_step_costs

if TYPE_CHECKING:
    # It imports Ray, which training without Ray goes without.
    from drl_dist.jobs.train.faults.restore import Share


class KeptCosts:
    """The costs of a run's folder, for `drl_dist.training.memory.fit_memory`; on all ranks of a group alike.

    The first rank reads them, and traces what they lack. The others wait for it, and trace nothing.

    Args:
        run_url: folder of the run.
        is_first: whether this is the first rank, or the only one.
        share: see `drl_dist.jobs.train.faults.restore.broadcast`; None for one that is alone.
    """

    def __init__(self, run_url: str, *, is_first: bool = True, share: Share | None = None) -> None:
        self._run_url, self._is_first, self._share = run_url, is_first, share
        self._costs: dict[str, dict[str, int]] = {}
        self._before: dict[str, dict[str, int]] = {}

    def __enter__(self) -> dict[str, dict[str, int]]:
        """The costs that are known; those that are added are kept."""
        if self._is_first:
            self._costs = read_step_costs(self._run_url)
            self._before = copy.deepcopy(self._costs)
        elif self._share is not None:
            self._costs = json.loads(self._share(None))
        return self._costs

    def __exit__(self, *_error: object) -> None:
        # Also where nothing fits, which the others are to find out, too.
        if self._is_first and self._share is not None:
            self._share(json.dumps(self._costs).encode())

    def write(self) -> None:
        """Keep what was traced, on the first rank; the run's record must be there."""
        if not self._is_first or self._costs == self._before:
            return
        # It imports torch's tools for tracing, which were used where costs have changed.
        from drl_dist.training.traced_costs import worth_keeping

        if (kept := worth_keeping(self._costs)) != self._before:
            write_step_costs(self._run_url, kept)
            self._before = copy.deepcopy(kept)
