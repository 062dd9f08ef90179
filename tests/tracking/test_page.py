"""The MLflow page in a browser."""

from __future__ import annotations

import io
import math
from pathlib import Path
from urllib.parse import urljoin

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from drl_dist.common.nested import flatten, to_dict
from drl_dist.config.presets import preset
from drl_dist.config.tree import RunConfig
from drl_dist.data.shards import encode_png
from drl_dist.localhost import MlflowServer
from drl_dist.tracking.runs import describe_by_picture, open_run
from drl_dist.tracking.server.client import client_of
from drl_dist.tracking.tracker import Tracker
from tests.support import BROWSER_ARGUMENTS, require

pytestmark = pytest.mark.integration
# Of everything that is waited for: five seconds, the default, are not enough for a page on a machine that is busy.
expect.set_options(timeout=60_000)


def test_a_picture_is_what_a_person_sees_first(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    chromium = require("chromium")
    params = flatten(to_dict(RunConfig(experiment=preset("digits"), run_name="page-run")))
    run_id = open_run(mlflow_server.uri, "page", "page-run", params)
    address = describe_by_picture(mlflow_server.uri, run_id)
    tracker = Tracker(mlflow_server.uri, run_id, tmp_path / "spools")
    y, x = np.mgrid[:256, :256]
    grids = [np.stack([x, y, np.full_like(x, 5 * step)], axis=-1).astype(np.uint8) for step in (0, 25, 50)]
    for step, grid in zip((0, 25, 50), grids, strict=True):
        tracker.log_image("samples", step, encode_png(grid.transpose(2, 0, 1)))
    for step in range(1, 51):
        tracker.log_metrics(step, {"loss": math.exp(-step / 20), "log_density_gap/level_0": 1 / step})
    assert tracker.close("FINISHED")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=BROWSER_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1300, "height": 1100})
        page.set_default_timeout(60_000)
        # The address that training prints, in a browser that has never been here.
        page.goto(address)
        expect(page.get_by_role("heading", name="page-run")).to_be_visible()
        expect_seen(page, page.locator("img[src^='blob:']").first, grids[-1], tmp_path / "artifact.png")
        expect_training_side(page)
        page.get_by_text("pictures", exact=True).click()
        for name in ("samples", "step_00000025.png"):
            page.get_by_text(name, exact=True).click()
        expect(page.get_by_text("pictures/samples/step_00000025.png", exact=True)).to_be_visible()
        expect_seen(page, page.locator("img[src^='blob:']").first, grids[1], tmp_path / "step.png")

        # From the list of runs, by a click on the run's name.
        fresh = browser.new_context(viewport={"width": 1300, "height": 1100})
        page = fresh.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{mlflow_server.uri}/#/experiments")
        page.get_by_text("Model training", exact=True).click()
        page.get_by_role("link", name="page", exact=True).first.click()
        page.get_by_role("link", name="page-run").first.click()
        expect(page.get_by_text("About this run")).to_be_visible()
        expect_training_side(page)
        expect(page.get_by_role("link", name="samples in full size")).to_be_visible()
        page.get_by_text("Show more").click()
        expect_seen(page, page.locator("img[src*='path=samples.png']"), grids[-1], tmp_path / "overview.png")

        place = page.get_by_role("link", name="charts").get_attribute("href")
        assert place is not None and "workflowType=machine_learning" in place
        page.goto(urljoin(f"{mlflow_server.uri}/", place))
        page.reload()
        expect(page.locator("svg.main-svg").first).to_be_visible()
        # No chart of images: it would show the 71 parameters and not the image.
        expect(page.get_by_role("slider")).to_have_count(0)
        browser.close()


def test_a_description_of_the_user_stays(mlflow_server: MlflowServer) -> None:
    client = client_of(mlflow_server.uri)
    run_id = open_run(mlflow_server.uri, "page", "described", {})
    client.set_tag(run_id, "mlflow.note.content", "")
    assert "artifacts/samples.png?workflowType=machine_learning" in describe_by_picture(mlflow_server.uri, run_id)
    assert client.get_run(run_id).data.tags["mlflow.note.content"] == ""


def expect_training_side(page: Page) -> None:
    expect(page.get_by_text("Evaluation runs")).to_have_count(0)
    expect(page.get_by_role("link", name="Runs", exact=True).first).to_be_visible()


def expect_seen(page: Page, image: Locator, grid: NDArray[np.uint8], screenshot: Path) -> None:
    """A grid's own pixels are on the screen, and nothing lies over them."""
    expect(image).to_be_visible()
    natural = image.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert natural == [grid.shape[1], grid.shape[0]]
    page.wait_for_timeout(500)  # panels slide
    box = image.bounding_box()
    assert box is not None and box["width"] >= 200 and box["height"] >= 200
    Image.open(io.BytesIO(page.screenshot())).save(screenshot)
    with Image.open(screenshot) as shot:
        for across, down in ((0.05, 0.05), (0.5, 0.5), (0.95, 0.05), (0.05, 0.95), (0.95, 0.95)):
            place = (int(box["x"] + across * box["width"]), int(box["y"] + down * box["height"]))
            assert 0 <= place[0] < shot.width and 0 <= place[1] < shot.height, f"{place} is off the screen"
            seen = np.array(shot.convert("RGB").getpixel(place), dtype=int)
            meant = grid[int(down * grid.shape[0]), int(across * grid.shape[1])].astype(int)
            assert np.abs(seen - meant).max() < 12, f"{seen} instead of {meant} at {place}"
