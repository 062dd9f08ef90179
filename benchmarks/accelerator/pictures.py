"""Pictures of a report, where matplotlib and Pillow are installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CURVE, SHEET = "curve.png", "samples.png"


def draw(folder: Path, steps: Sequence[dict[str, Any]], about: str) -> list[str]:
    """Draw the curve of a training and the sheet of its samples; what is there to show, or a sentence why not.

    Args:
        folder: of the results; pictures are written to it.
        steps: rows of the training's steps.
        about: what was trained, for captions.
    """
    shown: list[str] = []
    try:
        if steps:
            _curve(folder / CURVE, steps, about)
            shown.append(f"![Loss and gradient over the steps]({CURVE})")
        if (folder / "samples.npy").is_file():
            _sheet(folder, about)
            shown.append(f"![Samples beside images of the data]({SHEET})")
    except ModuleNotFoundError as error:
        shown.append(f"(no picture: no package {error.name}; the numbers are in results.jsonl and samples.npy)")
    return shown


def _curve(path: Path, steps: Sequence[dict[str, Any]], about: str) -> None:
    from drl_dist.common.figures import figure_png, new_figure

    # The losses of the two objectives have nothing in common but their name.
    matching = [row for row in steps if "noise_error" in row]
    recovery = [row for row in steps if "log_density_gap" in row]
    shown = [("score matching: loss", "loss", matching), ("recovery: log-density gap", "log_density_gap", recovery)]
    shown.append(("norm of the gradient", "grad_norm", list(steps)))
    figure = new_figure(12, 4)
    for place, (label, name, rows) in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), place)
        axes.plot([row["step"] for row in rows], [float(row[name]) for row in rows])
        axes.set_xlabel("step")
        axes.set_ylabel(label)
    path.write_bytes(figure_png(figure, about))


def _sheet(folder: Path, about: str) -> None:
    import numpy as np
    import torch

    from drl_dist.common.images import Panel
    from drl_dist.jobs.common.output.sheet import sheet_of

    panels = [
        Panel(title=title, images=torch.from_numpy(np.load(folder / name)))
        for title, name in (("samples", "samples.npy"), ("data", "images.npy"))
    ]
    (folder / SHEET).write_bytes(sheet_of(panels, about))
