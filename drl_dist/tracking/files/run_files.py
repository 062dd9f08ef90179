"""The writer of a run's metrics, pictures and curves as files, which works in the background."""

from __future__ import annotations

import io
import sys
import threading
from importlib.util import find_spec
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from drl_dist.common.errors import UserError
from drl_dist.common.places import joined
from drl_dist.data.filesystem import Folder
from drl_dist.tracking.curve_panels import DEFAULT_METRICS, Curve, binned, curves_caption, draw_panels, without_level
from drl_dist.tracking.files.events import EventFiles
from drl_dist.tracking.files.table import EARLIER, MetricsTable, histories, read_table

CURVES, PICTURES = "curves.png", "pictures"
WRITTEN = frozenset({EARLIER, CURVES, "samples.png", "progression.png"})
"""Names of files directly in the run's folder."""
WRITE_SECONDS = 15.0
"""Seconds between two writes; a killed process loses what it logged since the last one, and makes it again."""


class RunFiles:
    """The files of one run; use it as a context manager, which writes the rest at its end.

    ``metrics/`` holds the numbers (`drl_dist.tracking.files.table`), ``NAME.png`` the newest picture of a name, and
    ``pictures/NAME/step_NNNNNNNN.png`` each. A thread writes, every few seconds: no step waits for storage, and
    training outlives an outage of it.

    Args:
        run_url: the run's folder, on any storage.
        step: steps made, with which the run continues; what is there of later ones is removed.
        has_files: write metrics and pictures.
        has_events: write TensorBoard's event files.

    Raises:
        UserError: the folder cannot be written, or its metrics are damaged.
    """

    def __init__(self, run_url: str, step: int, *, has_files: bool = True, has_events: bool = False) -> None:
        self.run_url = run_url
        self._table = MetricsTable(run_url, step) if has_files else None
        self._events = EventFiles(run_url, step) if has_events else None
        self._pictures: list[tuple[str, int, bytes]] = []
        self._lock, self._is_away = threading.Lock(), False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_until_closed, name="run files", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log_metrics(self, step: int, numbers: dict[str, float]) -> None:
        """Add the numbers of a step; one that is not finite becomes a gap."""
        if self._table is not None:
            self._table.log(step, numbers)
        if self._events is not None:
            self._events.log(step, numbers)

    def log_image(self, name: str, step: int, png: bytes) -> None:
        """Add a picture, an RGB PNG file, as the newest of its name and as that of its step."""
        if self._table is not None:
            self._pictures.append((name, step, png))
        if self._events is not None:
            with Image.open(io.BytesIO(png)) as picture:
                self._events.show(name, step, np.asarray(picture.convert("RGB")))

    def write(self, *, is_sealed: bool = False) -> None:
        """Write everything that was added; before a checkpoint counts, all that came before it must be there. After
        `close`, nothing is left to be written.

        Args:
            is_sealed: begin other files with the next step, so that none grows without end.

        Raises:
            UserError: the storage does not take it; it is kept for the next call.
        """
        with self._lock:
            self._write(is_sealed=is_sealed)

    def draw_curves(self, seed: int) -> None:
        """Write all, and draw the metrics so far as ``curves.png``; nothing where matplotlib is not installed.

        A line on stderr says so where the storage does not answer: the next picture shows all again.

        Args:
            seed: of the training, for the caption.
        """
        if self._table is None or find_spec("matplotlib") is None:
            return
        try:
            self.write()
            draw_curves(self.run_url, seed)
        except UserError as error:
            print(f"the curves could not be drawn: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Write the rest; a line on stderr says so if the storage does not take it. Repeated calls do nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join()
        try:
            with self._lock:
                self._write(is_sealed=False)
                if self._events is not None:
                    self._events.close()
                    # The upload of the last checkpoint may come later and ask for all to be written: it is.
                    self._events = None
        except UserError as error:
            print(f"the last metrics and pictures could not be written: {error}", file=sys.stderr, flush=True)

    def _write(self, *, is_sealed: bool) -> None:
        while self._pictures:
            name, step, data = self._pictures[0]
            Folder(joined(self.run_url, f"{PICTURES}/{name}")).write(f"step_{step:08d}.png", data)
            Folder(self.run_url).write(f"{name}.png", data)
            del self._pictures[0]
        if self._table is not None:
            self._table.write(is_sealed=is_sealed)
        if self._events is not None:
            self._events.write(is_sealed=is_sealed)

    def _write_until_closed(self) -> None:
        while not self._closing.wait(WRITE_SECONDS):
            try:
                self.write()
            except UserError as error:
                if not self._is_away:
                    print(f"metrics and pictures are kept for later: {error}", file=sys.stderr, flush=True)
                self._is_away = True
            else:
                if self._is_away:
                    print("metrics and pictures are written again", file=sys.stderr, flush=True)
                self._is_away = False


def draw_curves(run_url: str, seed: int) -> None:
    """Draw a run's main metrics as ``curves.png`` in its folder; nothing if it has none. Needs matplotlib.

    Args:
        run_url: the run's folder.
        seed: of the training, for the caption.

    Raises:
        UserError: the storage does not answer.
    """
    found = {name: history.finite() for name, history in histories(read_table(run_url)).items()}
    panels: dict[str, dict[str, Curve]] = {
        metric: {name: binned(found[name]) for name in found if without_level(name) == metric and found[name]}
        for metric in DEFAULT_METRICS
    }
    panels = {metric: lines for metric, lines in panels.items() if lines}
    if panels:
        name = PurePosixPath(run_url).name
        picture = draw_panels(panels, "png", curves_caption(name, panels, seed), f"curves of {name}")
        Folder(run_url).write(CURVES, picture)


def refuse_other_files(run_url: str, record: str) -> None:
    """Raise `UserError` where files of the names that are written here lie in a folder that is no run's."""
    names = Folder(run_url).sizes().keys()
    if record not in names and (found := sorted(WRITTEN & names)):
        raise UserError(
            f"run {run_url}",
            got=f"{', '.join(found)} of something else, without {record}",
            expected="a new folder, or one of this run",
            remedy="give the run another name, or another --storage",
        )
