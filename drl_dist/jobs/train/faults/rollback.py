"""Rollback of a diverged run to its newest checkpoint, from which it continues with other noise."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

from drl_dist.checkpoints.rollbacks import Rollback, add_rollback
from drl_dist.checkpoints.verify import newest_verified_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.jobs.train.storage import drop_stale_snapshot
from drl_dist.jobs.train.task import WorkerTask
from drl_dist.training.guard import DivergedError

TAG = "drl_dist.rollbacks"


def fit_with_rollbacks(task: WorkerTask, fit: Callable[[WorkerTask], None]) -> None:
    """Fit; after a divergence roll back and fit again, at most `RunConfig.max_rollbacks` times in the life of the run.

    Raises:
        DivergedError: it diverged once more than that, or while it was asked to stop.
        UserError: storage does not answer; or anything from `fit`.
    """
    while True:
        try:
            return fit(task)
        except DivergedError as error:
            if task.num_rollbacks >= task.run.max_rollbacks:
                raise
            # Somebody who stops a run wants no further start; the next one rolls back.
            if task.stop_flag is not None and task.stop_flag.is_there():
                raise
            task = _rolled_back(task, error)


def _rolled_back(task: WorkerTask, error: DivergedError) -> WorkerTask:
    newest = newest_verified_checkpoint(task.run.url)
    back_to = newest.step if newest else 0
    known = add_rollback(task.run.url, Rollback(diverged_at=error.step, back_to=back_to, reason=str(error)))
    drop_stale_snapshot(task.run.url, newest)
    print(
        f"{error}\nrolled back to step {back_to}, from which it continues with other noise (roll-back {len(known)} of "
        f"at most {task.run.max_rollbacks})",
        flush=True,
    )
    if not task.tracking_run:
        return dataclasses.replace(task, num_rollbacks=len(known))
    from drl_dist.tracking.runs import set_tags

    history = "; ".join(f"{one.diverged_at} to {one.back_to}: {one.reason}" for one in known)
    try:
        set_tags(task.run.tracking.uri, task.tracking_run, {TAG: history})
    except UserError as failure:
        # The number of roll-backs is among the metrics, which are kept for later.
        print(f"the tag {TAG} could not be written: {failure}", file=sys.stderr, flush=True)
    return dataclasses.replace(task, num_rollbacks=len(known))
