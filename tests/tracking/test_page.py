"""The MLflow page in a browser."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, expect, sync_playwright

from drl_dist.config import RunConfig, flatten, to_dict
from drl_dist.localhost import MlflowServer
from drl_dist.presets import preset
from drl_dist.tracking.client import client_of
from drl_dist.tracking.runs import open_run
from drl_dist.tracking.tracker import Tracker
from tests.support import require

pytestmark = pytest.mark.integration

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def test_the_page_shows_the_run_its_charts_and_its_samples(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    chromium = require("chromium")
    params = flatten(to_dict(RunConfig(experiment=preset("digits"), run_name="page-run")))
    run_id = open_run(mlflow_server.uri, "page", "page-run", params)
    tracker = Tracker(mlflow_server.uri, run_id, tmp_path / "spools")
    # The slider over steps starts at 0, where training logs what the untrained network makes.
    for step in (0, 25, 50):
        y, x = np.mgrid[:64, :64]
        grid = np.stack([x * 4, y * 4, np.full_like(x, 5 * step)], axis=-1).astype(np.uint8)
        tracker.log_image("samples", step, grid)
    for step in range(1, 51):
        tracker.log_metrics(step, {"loss": math.exp(-step / 20), "log_density_gap/level_0": 1 / step})
    assert tracker.close("FINISHED")
    experiment = client_of(mlflow_server.uri).get_run(run_id).info.experiment_id

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1400, "height": 1300})
        page.set_default_timeout(60_000)
        run_page = f"{mlflow_server.uri}/#/experiments/{experiment}/runs/{run_id}"
        page.goto(f"{run_page}/model-metrics")
        expect(page.get_by_role("heading", name="page-run")).to_be_visible(timeout=60_000)
        expect(page.locator("svg.main-svg").first).to_be_visible(timeout=60_000)
        expect(page.get_by_role("slider").first).to_be_visible(timeout=60_000)
        expect_grid(page.locator("img[src*='artifact'], img[src^='blob:']").first)
        page.screenshot(path=str(tmp_path / "charts.png"))
        page.goto(f"{run_page}/artifacts/samples.png")
        expect_grid(page.locator("img[src*='artifact'], img[src^='blob:']").first)
        page.screenshot(path=str(tmp_path / "artifact.png"))
        browser.close()


def expect_grid(image: Locator) -> None:
    expect(image).to_be_visible(timeout=60_000)
    # A decoded square, as the grid is; charts show a preview of another size.
    width, height = image.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert width == height >= 64
