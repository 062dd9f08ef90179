"""A run's curves as a picture: ``jobs/curves.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient

from drl_dist.common.errors import UserError
from drl_dist.common.validation import local_of
from drl_dist.data.filesystem import check_writable_file, write_local
from drl_dist.tracking.curve_panels import DEFAULT_METRICS, Curve, binned, curves_caption, draw_panels, without_level
from drl_dist.tracking.curves_options import CurvesOptions
from drl_dist.tracking.metrics import plain_name
from drl_dist.tracking.runs import run_named
from drl_dist.tracking.server.client import connect, user_errors

KINDS = ("png", "svg", "pdf")


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
        panels: dict[str, dict[str, Curve]] = {}
        for metric in options.metrics or DEFAULT_METRICS:
            names = [name for name in known if metric in (name, plain_name(name), without_level(plain_name(name)))]
            if not names and not options.metrics:
                continue
            if not names:
                raise UserError(
                    f"metric {metric}",
                    got="a run without it",
                    expected=", ".join(sorted({without_level(plain_name(name)) for name in known})),
                    remedy="choose one of these",
                )
            panels[metric] = {
                # Runs that an earlier version began have the first part of a curve under another name.
                plain: _binned(client, run.info.run_id, [name for name in names if plain_name(name) == plain])
                for plain in {plain_name(name) for name in names}
            }
    if not panels:
        raise UserError(
            f"run {options.run_name}",
            got="no metric yet",
            expected="a run that has made a few steps",
            remedy="draw its curves later",
        )
    caption = curves_caption(options.run_name, panels, run.data.params.get("train.seed"))
    write_local(out, draw_panels(panels, kind, caption, label))
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


def _binned(client: MlflowClient, run_id: str, names: Sequence[str]) -> Curve:
    """A metric's curve, by all its names; of a step made twice, the last number counts."""
    found = (metric for name in names for metric in client.get_metric_history(run_id, name))
    logged = sorted(found, key=lambda metric: metric.timestamp)
    history = {metric.step: metric.value for metric in logged}
    return binned({step: value for step, value in history.items() if math.isfinite(value)})
