"""Whether a run is at work, and who tracks it, as recorded in the run's folder."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from drl_dist.checkpoints.format import parse_json_object
from drl_dist.common.errors import UserError
from drl_dist.common.process_identity import ProcessIdentity, this_process
from drl_dist.common.program import Stopped
from drl_dist.data.filesystem import Folder

STATUS = "run_status.json"
State = Literal["running", "finished", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What a run's folder says of it."""

    state: State
    """running also stands for a run whose job was killed with all its processes."""
    since: float
    """When that began, in seconds since 1970."""
    starts: int
    """Starts of its job so far."""
    worker_starts: int = 0
    """Starts of its workers so far; those beyond `starts` are restarts."""
    first_start: float = 0.0
    """When its job was started for the first time, in seconds since 1970."""
    tracking_uri: str = ""
    """MLflow server that tracks it; empty if none does."""
    tracking_run: str = ""
    """Id of its MLflow run."""
    model_name: str = ""
    """Registered model that its checkpoints are versions of."""
    process: ProcessIdentity | None = None
    """The process that trains it, or in which the driver of its workers is; None once it has ended, and in records of
    earlier versions."""

    @property
    def was_killed(self) -> bool:
        """Whether it is said to run, but its process has ended without a word; only seen on its own machine."""
        return self.state == "running" and self.process is not None and self.process.is_alive is False


def read_status(run_url: str) -> RunStatus | None:
    """What is recorded; None if nothing is, as for runs of earlier versions.

    Raises:
        UserError: the storage does not answer, or the record is damaged.
    """
    folder = Folder(run_url)
    try:
        text = folder.read(STATUS)
    except FileNotFoundError:
        return None
    values: dict[str, Any] = parse_json_object(text, source=f"record {folder.url_of(STATUS)}")
    try:
        if (process := values.get("process")) is not None:
            values = values | {"process": ProcessIdentity(**process)}
        status = RunStatus(**values)
        if status.state not in get_args(State) or not all(
            isinstance(number, int | float) for number in (status.since, status.starts, status.worker_starts)
        ):
            raise ValueError(f"state {status.state!r}")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"record {folder.url_of(STATUS)}",
            got=str(error),
            expected="the status of a run",
            remedy="delete it; the next start of the run writes it anew",
        ) from error
    return status


def write_status(run_url: str, status: RunStatus) -> None:
    """Record it; errors as `Folder.write`."""
    Folder(run_url).write(STATUS, (json.dumps(asdict(status), indent=2) + "\n").encode())


def refuse_at_work(run_url: str) -> None:
    """Return if no other process of this machine trains a run; one of a run that was killed is gone.

    Raises:
        UserError: one does: two would write over each other's files. Or the storage does not answer.
    """
    status = read_status(run_url)
    if status is None or status.state != "running" or (process := status.process) is None:
        return
    # A run that begins again within its process has left the record as it was.
    if process.is_alive and process.pid != os.getpid():
        raise UserError(
            f"run {run_url}",
            got=f"a run that is at work in process {process.pid} of this machine",
            expected="one that has ended",
            remedy="wait for it, or stop it first; another run needs a name of its own",
        )


@contextmanager
def status_recorded(run_url: str, **tracking: str) -> Iterator[None]:
    """Record a start of a run, and how it ends. A stop of the job is an exception here.

    Args:
        tracking: `RunStatus`'s `tracking_uri`, `tracking_run` and `model_name`; those left out stay.

    Raises:
        UserError: the storage does not take the start, or holds a damaged record.
    """
    before = read_status(run_url) or RunStatus(state="running", since=0.0, starts=0, first_start=time.time())
    begun = replace(before, state="running", since=time.time(), starts=before.starts + 1, **tracking)
    begun = replace(begun, process=this_process())
    write_status(run_url, begun)
    state: State = "stopped"
    try:
        yield
        state = "finished"
    except Stopped:
        raise
    except Exception:
        state = "failed"
        raise
    finally:
        try:
            write_status(run_url, replace(read_status(run_url) or begun, state=state, since=time.time(), process=None))
        except UserError as error:
            print(f"the run's folder could not be told that it has {state}: {error}", file=sys.stderr, flush=True)


def count_worker_start(run_url: str) -> RunStatus | None:
    """Record a start of the run's workers; what the record says.

    None if there is none, or, with a line on stderr, if the storage does not answer.
    """
    try:
        status = read_status(run_url)
        if status is not None:
            status = replace(status, worker_starts=status.worker_starts + 1)
            write_status(run_url, status)
        return status
    except UserError as error:
        print(f"a start of the workers could not be counted: {error}", file=sys.stderr, flush=True)
        return None
