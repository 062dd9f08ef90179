"""Curves of a run as a picture: what its objective has, or what was asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from drl_dist.common.errors import UserError
from drl_dist.common.images import MIN_WIDTH
from drl_dist.config.presets import preset
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.train.tracked import run_params
from drl_dist.localhost import MlflowServer
from drl_dist.tracking import curves as module
from drl_dist.tracking.curve_panels import Curve
from drl_dist.tracking.curves import CurvesOptions, curves
from drl_dist.tracking.runs import open_run

pytestmark = pytest.mark.integration


def test_it_draws_what_the_run_has(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(mlflow_server.uri)
    names = ["loss", *(f"noise_error/level_{band:03d}-{band + 9:03d}" for band in range(0, 160, 10)), "images_seen"]
    experiment = preset("digits")
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=9))
    run = open_run(mlflow_server.uri, "curves", "dsm", run_params(RunConfig(experiment=experiment)))
    for step in (1, 2, 3):
        for name in names:
            client.log_metric(run, name, 1.0 / step, step=step)
    open_run(mlflow_server.uri, "curves", "empty", {})
    drawn: list[dict[str, int]] = []
    draw = module.draw_panels

    def counted(panels: dict[str, dict[str, Curve]], *more: str) -> bytes:
        drawn.append({name: len(lines) for name, lines in panels.items()})
        return draw(panels, *more)

    monkeypatch.setattr(module, "draw_panels", counted)

    def options(**fields: object) -> CurvesOptions:
        given = {"run_name": "dsm", "experiment": "curves", "uri": mlflow_server.uri, "out": str(tmp_path / "a.png")}
        return CurvesOptions(**(given | fields))  # type: ignore[arg-type]

    assert curves(options()) == 0
    assert drawn.pop() == {"loss": 1, "noise_error": 16}
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width >= MIN_WIDTH
        assert (
            picture.info["Title"]
            == "curves of run dsm, up to about step 3, means over ranges of steps, with medians, seed 9"
        )
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(UserError, match=r"picture .*/a.png: got a file of something else, expected no such file, or "):
        curves(options(metrics=("images_seen",)))
    (tmp_path / "mine.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"picture .*/mine.png: got a file of something else"):
        curves(options(out=str(tmp_path / "mine.png")))
    assert ((tmp_path / "a.png").read_bytes(), (tmp_path / "mine.png").read_bytes()) == (before, b"mine")
    # The same curves, drawn again, for each kind of picture.
    assert curves(options()) == 0
    drawn.clear()
    for name in ("b.png", "b.svg", "b.pdf"):
        for _ in range(2):
            assert curves(options(metrics=("images_seen",), out=str(tmp_path / name))) == 0
    drawn[1:] = []
    assert drawn.pop() == {"images_seen": 1}
    with pytest.raises(UserError, match="metric displacement: got a run without it"):
        curves(options(metrics=("displacement",), out=str(tmp_path / "c.png")))
    with pytest.raises(UserError, match="run empty: got no metric yet"):
        curves(options(run_name="empty", out=str(tmp_path / "c.png")))
    with pytest.raises(UserError, match="no such run in experiment curves"):
        curves(options(run_name="other"))
    assert drawn == []
