"""A run's curves as a picture: ``jobs/curves.py``."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from numpy.typing import NDArray

from drl_dist.common.errors import UserError
from drl_dist.common.validation import local_of
from drl_dist.data.filesystem import check_writable_file, write_local
from drl_dist.tracking.client import connect, user_errors
from drl_dist.tracking.metrics import describe
from drl_dist.tracking.runs import run_named

DEFAULT_METRICS = ("loss", "log_density_gap", "displacement", "noise_error", "grad_norm")
BINS = 60
"""Points of a curve: means over equal ranges of steps, since single steps are mostly noise."""
MOST_LABELS = 8
KINDS = ("png", "svg", "pdf")
LINEAR_NATS = 10
"""Log-density gaps beyond it are drawn on a logarithmic scale: those of level 0 are a hundred times the others."""
_LEVEL = re.compile(r"/level_(\S+)$")


@dataclass(frozen=True, kw_only=True)
class CurvesOptions:
    """Options of ``jobs/curves.py``."""

    run_name: str = ""
    """The run."""
    out: str = "curves.png"
    """PNG file to write."""
    metrics: tuple[str, ...] = ()
    """Metrics, a panel each; those of all levels together are named without their level. By default those of loss,
    log_density_gap, displacement, noise_error and grad_norm that the run's objective has."""
    experiment: str = "drl_dist"
    """MLflow experiment of the run."""
    uri: str | None = None
    """MLflow server; by default the environment's MLFLOW_TRACKING_URI."""


def curves(options: CurvesOptions) -> int:
    """Draw the curves of a run; the exit status.

    Raises:
        UserError: --out cannot be written, the server does not answer, or it knows no such run or metric.
    """
    out = local_of(options.out, "option --out").absolute()
    check_writable_file(str(out), "option --out")
    kind = out.suffix[1:].lower()
    if kind not in KINDS:
        raise UserError(
            "option --out",
            got=options.out,
            expected="a name that ends in " + ", ".join(f".{kind}" for kind in KINDS),
            remedy="choose another name",
        )
    client = connect(options.uri)
    with user_errors(client.tracking_uri):
        experiment = client.get_experiment_by_name(options.experiment)
        run = run_named(client, experiment.experiment_id, options.run_name) if experiment else None
        if run is None:
            raise UserError(
                f"run {options.run_name!r}",
                got=f"no such run in experiment {options.experiment} of {client.tracking_uri}",
                expected="a tracked run",
                remedy="correct --run-name, --experiment or --uri",
            )
        label = f"curves of MLflow run {run.info.run_id}: {', '.join(options.metrics or DEFAULT_METRICS)}"
        _refuse_other(out, label)
        known = sorted(run.data.metrics)
        panels: dict[str, dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
        for metric in options.metrics or DEFAULT_METRICS:
            names = [name for name in known if name == metric or _LEVEL.sub("", name) == metric]
            if not names and not options.metrics:
                continue
            if not names:
                raise UserError(
                    f"metric {metric}",
                    got="a run without it",
                    expected=", ".join(sorted({_LEVEL.sub("", name) for name in known})),
                    remedy="choose one of these",
                )
            panels[metric] = {name: _binned(client, run.info.run_id, name) for name in names}
    if not panels:
        raise UserError(
            f"run {options.run_name}",
            got="no metric yet",
            expected="a run that has made a few steps",
            remedy="draw its curves later",
        )
    write_local(out, _draw(panels, kind, label))
    print(f"curves of {options.run_name}: {options.out}")
    return 0


def _refuse_other(out: Path, label: str) -> None:
    """Return if the file is not there, or is an earlier picture of the same curves.

    Raises:
        UserError: it is something else.
    """
    if out.exists() and label.encode() not in out.read_bytes():
        raise UserError(
            f"picture {out}",
            got="a file of something else",
            expected=f"no such file, or {label}",
            remedy="choose another --out, or remove the file",
        )


def _binned(client: MlflowClient, run_id: str, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and means of a metric over `BINS` ranges of steps; of a step made twice, the last number counts."""
    logged = sorted(client.get_metric_history(run_id, name), key=lambda metric: metric.timestamp)
    history = {metric.step: metric.value for metric in logged}
    steps = np.array(sorted(step for step, value in history.items() if math.isfinite(value)), dtype=np.float64)
    values = np.array([history[int(step)] for step in steps])
    parts = np.array_split(np.arange(len(steps)), min(BINS, len(steps)))
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])


def _draw(
    panels: dict[str, dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]], kind: str, label: str
) -> bytes:
    """The panels side by side, as a file of one of `KINDS` whose metadata carry the label, which says what it shows."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False)
    for axis, (metric, lines) in zip(axes[0], panels.items(), strict=True):
        colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(lines))).tolist()
        for colour, (name, (steps, values)) in zip(colours, lines.items(), strict=True):
            level = _LEVEL.search(name)
            # Sixteen bands of levels would hide the curves: colours run from the first to the last.
            is_told = level and (len(lines) <= MOST_LABELS or name in (min(lines), max(lines)))
            axis.plot(
                steps, values, color=colour, linewidth=1, label=f"level {level[1]}" if level and is_told else None
            )
        if len(lines) > 1:
            axis.legend(fontsize=6)
        if metric == "log_density_gap" and any(np.abs(values).max() > LINEAR_NATS for _, values in lines.values()):
            axis.set_yscale("symlog", linthresh=LINEAR_NATS)
        axis.set_title(describe(f"{metric}/level_0") or describe(metric) or metric, fontsize=7, wrap=True)
        axis.set_xlabel("step", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    buffer = io.BytesIO()
    metadata = {"Subject" if kind == "pdf" else "Description": label}
    figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
    pyplot.close(figure)
    return buffer.getvalue()
