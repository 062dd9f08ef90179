"""Metrics, pictures and curves of a run as files in its folder, where no tracking server takes them."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import write_local
from drl_dist.tracking.curve_panels import DEFAULT_METRICS, Curve, binned, draw_panels, without_level
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState

METRICS_NAME, CURVES_NAME, PICTURES_FOLDER = "metrics.jsonl", "curves.png", "pictures"
WRITTEN = frozenset({METRICS_NAME, CURVES_NAME, "samples.png", "progression.png"})
"""Names directly in the run's folder."""


class RunFiles:
    """The files of one run; use it as a context manager, to close the file of metrics.

    ``metrics.jsonl`` has an object a line, the numbers of a step by name, null for one that is not finite; a step may
    have several lines. ``NAME.png`` is the newest picture of a name, and ``pictures/NAME/step_NNNNNNNN.png`` is each.

    Args:
        folder: of the run; made if need be.
        step: steps made, with which the run continues: lines of later ones, which will be made again, are removed.

    Raises:
        UserError: the folder cannot be written, or its metrics are damaged.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._place = folder, folder / METRICS_NAME
        kept = [line for line, numbers in self._lines() if numbers["step"] <= step]
        write_local(self._place, "".join(kept).encode())
        # Unbuffered: a killed process leaves whole lines, except perhaps the last one.
        self._file = self._place.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def log_metrics(self, step: int, numbers: dict[str, float]) -> None:
        """Append the numbers of a step."""
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False).encode() + b"\n")

    def log_image(self, name: str, step: int, sheet: NDArray[np.uint8]) -> None:
        """Write a picture, (H, W, 3) uint8, as the newest of its name and as that of its step."""
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, format="PNG")
        write_local(self._folder / PICTURES_FOLDER / name / f"step_{step:08d}.png", buffer.getvalue())
        write_local(self._folder / f"{name}.png", buffer.getvalue())

    def draw_curves(self) -> None:
        """Draw the metrics so far as ``curves.png``; nothing where matplotlib is not installed."""
        if find_spec("matplotlib") is None:
            return
        histories: dict[str, dict[int, float]] = {}
        for _, numbers in self._lines():
            for name, value in numbers.items():
                if without_level(name) in DEFAULT_METRICS and value is not None:
                    histories.setdefault(name, {})[numbers["step"]] = value
        panels: dict[str, dict[str, Curve]] = {
            metric: {name: binned(histories[name]) for name in sorted(histories) if without_level(name) == metric}
            for metric in DEFAULT_METRICS
        }
        panels = {metric: lines for metric, lines in panels.items() if lines}
        if panels:
            write_local(self._folder / CURVES_NAME, draw_panels(panels, "png", f"curves of {self._folder.name}"))

    def _lines(self) -> list[tuple[str, dict[str, Any]]]:
        """Every whole line and what it says; a last one that was cut short is left out."""
        if not self._place.exists():
            return []
        whole, _, _ = self._place.read_text().rpartition("\n")
        found: list[tuple[str, dict[str, Any]]] = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                numbers = json.loads(line)
            except ValueError:
                numbers = None
            if not isinstance(numbers, dict) or type(numbers.get("step")) is not int:
                raise UserError(
                    f"metrics {self._place}",
                    got=f"line {number} without a step",
                    expected="the metrics of this run",
                    remedy="restore the file from a copy, or move it elsewhere",
                )
            found.append((line + "\n", numbers))
        return found


@dataclass(frozen=True)
class Curves:
    """A callback that draws the curves where samples are drawn; stands behind what logs the numbers of a step."""

    files: RunFiles
    every_steps: int

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`."""
        if report.step % self.every_steps == 0 or report.step == report.num_steps:
            self.files.draw_curves()
