"""Whether a run that another machine began is still at work there, by the signs of life in its folder."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

from drl_dist.checkpoints.run_status import read_status
from drl_dist.common.durations import duration
from drl_dist.common.errors import UserError
from drl_dist.tracking.files.table import History, histories, read_table
from drl_dist.training.health import judge


def refuse_at_work_elsewhere(run_url: str) -> None:
    """Return unless another machine logged a step of the run so lately that it counts as being at work.

    Where its process cannot be seen, one that was killed counts as such for a few minutes, as in
    ``python -m drl_dist status``.

    Raises:
        UserError: it did, or the storage does not answer.
    """
    status = read_status(run_url)
    if status is None or status.state != "running" or (process := status.process) is None:
        return
    if process.is_alive is not None:
        # On this machine; see `drl_dist.checkpoints.run_status.refuse_at_work`.
        return
    logged = histories(read_table(run_url, ["loss"], ends_only=True)).get("loss", History())
    times = sorted(logged.times.values())
    gaps = [after - before for before, after in pairwise(times)]
    silent = time.time() - max([status.since, *times])
    health = judge({}, silent_seconds=silent, interval_seconds=statistics.median(gaps) if gaps else None)
    if not health.findings:
        raise UserError(
            f"run {run_url}",
            got=f"a run that was at work on {process.host} {duration(max(0.0, silent))} ago",
            expected="one that has ended",
            remedy="wait for it, or stop it first; if it was killed there, start it again in a few minutes",
        )
