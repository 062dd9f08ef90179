"""Ray Train's side of a storage URL: its filesystem object, its upload, and its own bookkeeping file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs
import ray.train
from fsspec.spec import AbstractFileSystem

from drl_dist.checkpoints.retention import SNAPSHOT
from drl_dist.checkpoints.storage import (
    StoredCheckpoint,
    checkpoint_name,
    is_complete,
    is_own_name,
    remove_checkpoint,
    upload_checkpoint,
)
from drl_dist.common.errors import UserError
from drl_dist.common.validation import place_of
from drl_dist.data.filesystem import Folder, open_filesystem

UPLOAD_PAUSES = (10.0, 30.0, 60.0, 120.0, 240.0)
"""Seconds between tries to upload a checkpoint: an outage of some minutes must not end a run of days."""


def ray_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """A storage URL as the filesystem and path that `ray.train.RunConfig` takes."""
    filesystem, path = open_filesystem(url)
    return pyarrow.fs.PyFileSystem(_RunFiles(filesystem, place_of(url).scheme)), path


class _RunFiles(pyarrow.fs.FSSpecHandler):
    """The run's folder for Ray Train, which deletes old checkpoints: their own files, and nobody else's."""

    def __init__(self, fs: AbstractFileSystem, scheme: str) -> None:
        super().__init__(fs)
        self._scheme = scheme

    def delete_dir(self, path: str) -> None:
        # pyarrow's own would delete whatever lies there.
        if not is_own_name(path.rpartition("/")[2]):
            raise PermissionError(f"{path} is no checkpoint of this run")
        remove_checkpoint(path if self._scheme == "file" else f"{self._scheme}://{path}")


class Uploader:
    """The ``checkpoint_upload_fn`` of `ray.train.report`: files first, checksums last, with patience.

    Args:
        run_url: folder of the run.
        uploaded: called when a checkpoint is complete in storage.
        before: writes what must be in storage before the checkpoint; may raise `UserError`, and is called again.
    """

    def __init__(
        self,
        run_url: str,
        uploaded: Callable[[], None] = lambda: None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self.run_url, self.uploaded, self._before = run_url, uploaded, before

    def __call__(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        self.upload(Path(checkpoint.path), name)
        self.uploaded()
        storage = ray.train.get_context().get_storage()
        assert storage is not None
        return ray.train.Checkpoint(f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem)

    def upload(self, local: Path, name: str) -> None:
        """Copy a checkpoint folder into the run folder, with patience.

        Raises:
            UserError: the storage did not take it for all of `UPLOAD_PAUSES`.
        """
        for pause in (*UPLOAD_PAUSES, None):
            try:
                self._before()
                upload_checkpoint(local, f"{self.run_url}/{name}")
                return
            except UserError as error:
                if pause is None:
                    raise
                print(f"uploading {name} failed ({error}) trying again in {pause:.0f} s", flush=True)
                time.sleep(pause)


def drop_stale_snapshot(run_url: str, newest: StoredCheckpoint | None) -> bool:
    """Remove Ray Train's list of checkpoints if Ray could not start with it; whether it was removed.

    That is so if it is torn, written by another version of Ray, or names a checkpoint that is gone. Resuming does not
    need it: what counts are the checkpoint folders themselves.

    Args:
        run_url: folder of the run.
        newest: what the run continues from. If the list names a later one, which is damaged, it is removed too: Ray
            would list that folder twice once it is written again, and delete it with the first of the two.
    """
    folder = Folder(run_url)
    try:
        text = folder.read(SNAPSHOT)
    except FileNotFoundError:
        return False
    try:
        snapshot = json.loads(text)
        names = [entry["checkpoint_dir_name"] for entry in snapshot["checkpoint_results"]]
        # Names sort as steps do.
        is_past = all(newest is not None and name <= checkpoint_name(newest.step) for name in names)
        is_ours = all(map(is_own_name, names))
        is_whole = all(is_complete(folder.url_of(name)) for name in names)
        if snapshot["ray_version"] == ray.__version__ and is_past and is_ours and is_whole:
            return False
    except (ValueError, TypeError, KeyError):
        pass
    folder.remove(SNAPSHOT)
    return True
