"""``python -m drl_dist delete``: a run's files, its model versions and its MLflow run, and nothing else."""

from __future__ import annotations

import os
import re
import sys

from drl_dist.checkpoints.retention import SNAPSHOT
from drl_dist.checkpoints.rollbacks import ROLLBACKS
from drl_dist.checkpoints.run_record import RECORD, RUN_CONFIG
from drl_dist.checkpoints.run_status import STATUS
from drl_dist.checkpoints.step_costs import STEP_COSTS
from drl_dist.checkpoints.storage import remove_checkpoint, stored_checkpoints
from drl_dist.common.errors import UserError
from drl_dist.common.places import joined
from drl_dist.common.validation import refuse_missing
from drl_dist.console.options import DeleteOptions
from drl_dist.console.runs import RunView, view_run
from drl_dist.data.filesystem import Folder
from drl_dist.data.substitutes import SUBSTITUTES
from drl_dist.tracking.files.events import EVENTS
from drl_dist.tracking.files.run_files import PICTURES, WRITTEN
from drl_dist.tracking.files.table import TABLE

# Ray Train's, which sees by it that all workers reach the same storage.
_MARKER = ".validate_storage_marker"
_OWN = (*sorted(WRITTEN), SNAPSHOT, _MARKER, SUBSTITUTES, ROLLBACKS, STATUS, RUN_CONFIG, STEP_COSTS)
"""Files directly in a run's folder, but for the record, which goes last: a repeated command then still finds a run."""
_BELOW = {
    TABLE: re.compile(r"steps_\d{9,}\.parquet"),
    EVENTS: re.compile(r"events\.out\.tfevents\..*"),
    f"{PICTURES}/samples": re.compile(r"step_\d{8,}\.png"),
    f"{PICTURES}/progression": re.compile(r"step_\d{8,}\.png"),
}
"""Folders in it, and the names of the files that training writes there."""
_PART = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")


def delete(options: DeleteOptions) -> int:
    """Remove a run after asking; the exit status: 1 if the answer is no.

    Raises:
        UserError: the folder is no run's, the run is at work, the server does not answer, or there is nobody to ask.
    """
    refuse_missing({"RUN": options.run})
    run = view_run(options.run, options.tracking_uri)
    _check(run)
    uri = options.tracking_uri or (run.status.tracking_uri if run.status else "") or None
    run_id = None if options.keep_tracking else _tracked(run, uri)
    versions = _versions(uri, run_id) if run_id else []
    checkpoints = stored_checkpoints(run.url)
    parts = [f"{len(checkpoints)} checkpoint{'' if len(checkpoints) == 1 else 's'}, metrics and pictures in {run.url}"]
    if versions:
        parts.append(f"the model version{'' if len(versions) == 1 else 's'} {', '.join(versions)}")
    if run_id:
        parts.append(f"the MLflow run {run_id}")
    print(f"run {run.name}, {run.state}, step {run.step}: {'; '.join(parts)}", flush=True)
    if not options.yes and not _is_agreed():
        print("nothing is removed")
        return 1
    if run_id:
        from drl_dist.tracking.tracked_runs import delete_tracked

        # First, since the run's folder says where they are.
        delete_tracked(uri, run_id)
        print(f"removed {', '.join([*versions, f'MLflow run {run_id}'])} (MLflow keeps it until `mlflow gc`)")
    for stored in checkpoints:
        remove_checkpoint(stored.url)
        print(f"removed {stored.url}", flush=True)
    removed = remove_files(run.url)
    print(f"removed {removed} other file{'' if removed == 1 else 's'} of {run.url}")
    if left := _left(run.url):
        print(f"left in {run.url}, since training does not write it: {', '.join(left)}")
    return 0


def remove_files(run_url: str) -> int:
    """Remove the files that training writes into a run's folder, but for its checkpoints; how many there were.

    Raises:
        UserError: the storage does not answer.
    """
    count = 0
    for below, own in _BELOW.items():
        folder = Folder(joined(run_url, below))
        for name in folder.sizes():
            part = _PART.fullmatch(name)
            if own.fullmatch(part[1] if part else name):
                folder.remove(name)
                count += 1
        folder.remove_if_empty()
    Folder(joined(run_url, PICTURES)).remove_if_empty()
    folder = Folder(run_url)
    present = folder.sizes().keys()
    count += sum(name in present for name in (*_OWN, RECORD))
    folder.remove_written([*_OWN, RECORD])
    folder.remove_if_empty()
    return count


def _check(run: RunView) -> None:
    local = Folder(run.url).local
    if local is not None and local.is_symlink():
        raise UserError(
            f"run {run.url}",
            got="a symbolic link",
            expected="the folder itself",
            remedy=f"give {local.resolve()}, if it is yours",
        )
    if run.state == "running":
        raise UserError(
            f"run {run.url}",
            got="a run that is at work, or was killed within the last minutes",
            expected="one that has ended",
            remedy="stop its job first; a killed one counts as stale after a few minutes",
        )


def _tracked(run: RunView, uri: str | None) -> str | None:
    """The id of the MLflow run; None if there is none."""
    if run.status is not None and not run.status.tracking_run:
        return None
    if uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    from drl_dist.tracking.tracked_runs import find_run, look_up

    run_id = run.status.tracking_run if run.status else find_run(uri, run.name)
    # Its server may be away; then nothing is removed.
    try:
        return run_id if run_id and look_up(uri, run_id) is not None else None
    except UserError as error:
        raise UserError(
            error.what,
            got=error.got,
            expected=error.expected,
            remedy=f"{error.remedy}, or give --keep-tracking to remove the run's folder alone",
        ) from error


def _versions(uri: str | None, run_id: str) -> list[str]:
    from drl_dist.tracking.tracked_runs import versions_of

    return versions_of(uri, run_id)


def _is_agreed() -> bool:
    if not sys.stdin.isatty():
        raise UserError(
            "python -m drl_dist delete",
            got="no terminal to ask on",
            expected="an answer, or --yes",
            remedy="add --yes to remove what is listed above",
        )
    try:
        return input("remove all of this? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _left(run_url: str) -> list[str]:
    folder = Folder(run_url)
    if folder.local is None:
        return sorted(folder.sizes())
    return sorted(path.name for path in folder.local.iterdir()) if folder.local.exists() else []
