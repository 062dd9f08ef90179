"""TensorBoard's event files of a run, in ``tensorboard/`` of its folder; needs the package tensorboard."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drl_dist.common.errors import UserError
from drl_dist.common.places import joined
from drl_dist.data.filesystem import Folder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = "tensorboard"
"""Folder of the event files in the run's folder."""


def check_tensorboard() -> None:
    """Raise `UserError` if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "option --tracking.tensorboard",
            got="no package tensorboard here",
            expected="TensorBoard installed, on all machines",
            remedy="run `pip install '.[tensorboard]'`, or leave the option out",
        )


class EventFiles:
    """Writes metrics and pictures for TensorBoard.

    Event files only grow, which object stores do not allow: where the run's folder is not on this machine, they grow in
    a temporary folder and are copied. A new one begins at each checkpoint, so that no copy is large.

    Args:
        run_url: the run's folder.
        step: steps made, with which the run continues: TensorBoard hides what an earlier start logged of later ones.
    """

    def __init__(self, run_url: str, step: int) -> None:
        self._target = Folder(joined(run_url, EVENTS))
        self._scratch = None if self._target.local else Path(tempfile.mkdtemp(prefix="drl-events-"))
        self._folder = self._target.local or self._scratch
        self._purge_step: int | None = step + 1
        self._lock = threading.Lock()
        self._writer = self._new_writer()

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers of a step."""
        with self._lock:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)

    def show(self, name: str, step: int, sheet: NDArray[np.uint8]) -> None:
        """Add a picture, (H, W, 3) uint8."""
        with self._lock:
            self._writer.add_image(name, sheet, step, dataformats="HWC")

    def write(self, *, is_sealed: bool) -> None:
        """Write what was added, and with `is_sealed` begin another file.

        Raises:
            UserError: the storage does not take it; all is still there for the next call.
        """
        if self._scratch is None:
            self._writer.flush()
            return
        grown = sorted(self._scratch.iterdir())
        with self._lock:
            if is_sealed:
                self._writer.close()
                self._writer = self._new_writer()
            else:
                self._writer.flush()
        for path in sorted(self._scratch.iterdir()):
            self._target.write(path.name, path.read_bytes())
            if is_sealed and path in grown:
                path.unlink()

    def close(self) -> None:
        """Write the rest and remove what is temporary; errors as `write`."""
        self._writer.close()
        if self._scratch is None:
            return
        for path in sorted(self._scratch.iterdir()):
            self._target.write(path.name, path.read_bytes())
        shutil.rmtree(self._scratch)

    def _new_writer(self) -> SummaryWriter:
        # Importing it takes a second or two.
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        self._purge_step = None
        return writer
