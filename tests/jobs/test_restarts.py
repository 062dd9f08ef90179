"""A run that gets on outlives any number of failures; one that does not, or that a restart cannot mend, ends."""

from __future__ import annotations

import pickle  # noqa: TID251 - what Ray does with errors

import pytest
from ray.train import Checkpoint
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from drl_dist.common.errors import UserError
from drl_dist.jobs.train.faults.restarts import MAX_FAILURES, NoProgressError, RestartPolicy, ScaleUpError

DEAD = {1: RuntimeError("The actor\ndied")}


def test_checkpoints_between_failures_keep_a_run_going(capsys: pytest.CaptureFixture[str]) -> None:
    policy = RestartPolicy()
    for _ in range(4):
        for _ in range(MAX_FAILURES):
            policy.after_exception(None, DEAD)
        # A report without a checkpoint, as of a score, is no progress that a restart could continue from.
        policy.after_report(None, [{}], Checkpoint("/nowhere"))
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 4 * MAX_FAILURES
    assert told[0].startswith("worker 1 failed (RuntimeError: The actor died); Ray Train restarts from the newest")


def test_a_killed_worker_is_said_to_have_died(capsys: pytest.CaptureFixture[str]) -> None:
    why = "The actor is dead because its worker process has died. Exit type: KILL"
    died = RuntimeError(f"The actor died.\n\tpid: 7\n{why}")
    failed = WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: Worker(actor=1)", died)
    RestartPolicy().after_exception(None, {0: failed})
    told = capsys.readouterr().out
    assert told.startswith("worker 0 failed (RuntimeError: its worker process has died. Exit type: KILL); Ray Train")


def test_failures_without_a_checkpoint_end_the_run() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_FAILURES):
        policy.after_exception(None, DEAD)
        policy.after_report(None, [{}], None)
    with pytest.raises(NoProgressError, match=r"6 times without a further checkpoint, .*RuntimeError: The actor died"):
        policy.after_exception(None, DEAD)


def test_what_a_restart_cannot_mend_ends_the_run_at_once() -> None:
    policy, damaged = RestartPolicy(), UserError("shard", got="1 byte", expected="2", remedy="prepare it again")
    with pytest.raises(UserError) as raised:
        policy.after_exception(None, {0: RuntimeError("connection closed by peer"), 1: damaged})
    assert raised.value is damaged


def test_a_restart_for_more_workers_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    policy = RestartPolicy()
    for _ in range(2 * MAX_FAILURES):
        policy.after_exception(None, {0: ScaleUpError(2, 1), 1: RuntimeError("connection closed by peer")})
    told = capsys.readouterr().out.splitlines()
    assert set(told) == {
        "1 more worker can join the 2 there are; all restart from the checkpoint that is just complete"
    }


def test_the_error_comes_out_of_another_process_as_it_was() -> None:
    error = pickle.loads(pickle.dumps(NoProgressError(6, "death")))  # noqa: S301
    assert (str(error), error.failures) == (str(NoProgressError(6, "death")), 6)
