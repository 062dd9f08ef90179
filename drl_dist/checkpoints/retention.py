"""Removal of orphaned checkpoints: those in storage that a kill left, and that Ray Train does not list for deletion."""

from __future__ import annotations

import json
from itertools import islice

from drl_dist.checkpoints.storage import (
    FILES,
    StoredCheckpoint,
    is_complete,
    remove_checkpoint,
    stored_checkpoints,
)
from drl_dist.data.filesystem import Folder

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints that it will delete when newer ones are there."""


def remove_orphaned(run_url: str, keep: int | None, newest: StoredCheckpoint | None) -> list[StoredCheckpoint]:
    """Remove what is older than the `keep` newest complete checkpoints, finished or not, and not on Ray Train's list.

    Ray Train deletes only what was reported to it. Nobody reported a checkpoint whose upload was the last thing that a
    worker did, and forgets all of them with a list that was torn. Call it while nobody trains. What else lies in such
    a folder stays, and the folder with it.

    Args:
        run_url: folder of the run.
        keep: complete checkpoints that stay, counted from `newest` on; all of them if it is None.
        newest: the run's newest checkpoint that verifies; later ones stay, and do not count.

    Returns:
        what was removed, newest first.

    Raises:
        UserError: the storage does not answer.
    """
    if keep is None or newest is None:
        return []
    stored = [one for one in stored_checkpoints(run_url) if one.step <= newest.step]
    if len(stored) <= keep:
        return []
    # Those that are looked at cost requests, and there may be thousands.
    complete = list(islice((one for one in stored if is_complete(one.url)), keep))
    if len(complete) < keep:
        return []
    listed = listed_names(run_url)
    oldest_kept = complete[keep - 1].step
    orphaned = [
        one
        for one in stored
        if one.step < oldest_kept and one.url.rsplit("/", 1)[1] not in listed and _is_own(Folder(one.url))
    ]
    for one in orphaned:
        remove_checkpoint(one.url)
    return orphaned


def listed_names(run_url: str) -> set[str]:
    """Names of the checkpoint folders on Ray Train's list.

    Raises:
        UserError: the storage does not answer.
    """
    try:
        snapshot = json.loads(Folder(run_url).read(SNAPSHOT))
        return {entry["checkpoint_dir_name"] for entry in snapshot["checkpoint_results"]}
    except FileNotFoundError:
        return set()


def _is_own(folder: Folder) -> bool:
    """Whether a checkpoint's files lie in a folder, or nothing at all."""
    is_empty = folder.local is not None and not any(folder.local.iterdir())
    return is_empty or not folder.sizes().keys().isdisjoint(FILES)
