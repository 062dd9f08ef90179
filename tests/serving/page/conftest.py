"""A browser, and the page over a tiny model with data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

import drl_dist
from drl_dist.jobs.serve.host import ModelHost
from tests.helpers.labelled import write_images
from tests.serving.page.browsing import PageServer, page_of
from tests.support import BROWSER_ARGUMENTS, require, write_tiny_checkpoint

# Five seconds, the default, are not enough for a page on a machine that is busy.
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> drl_dist.Model:
    torch.set_num_threads(1)
    return drl_dist.load(write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "c", width=4, num_chain_steps=2))


@pytest.fixture(scope="module")
def host(model: drl_dist.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelHost]:
    data = tmp_path_factory.mktemp("data")
    write_images(data, range(18))
    host = ModelHost(model, name="tiny", data=str(data), max_batch=16, max_waiting=64)
    with host.running():
        yield host


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = require("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def server(host: ModelHost) -> Iterator[PageServer]:
    with page_of(host) as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: PageServer) -> Iterator[Page]:
    """The page as it is before anything was asked for, with everything that it loads from elsewhere refused."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if is_own(request, server) else wrong.append(request.url))
    yield page
    context.close()
    assert wrong == []


def is_own(request: Request, server: PageServer) -> bool:
    return request.url.startswith((server.url, "data:", "blob:"))
