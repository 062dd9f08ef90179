"""Films of the page: every level, the right image, labels, breaks of the connection; and what visitors prefer."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import drl_dist
from drl_dist.jobs.serve.host import ModelHost
from drl_dist.jobs.serve.web.access import Access, digest
from drl_dist.serving.requests import SampleRequest
from tests.helpers.labelled import write_model
from tests.serving.page.browsing import (
    PageServer,
    expect_image,
    expect_on_the_screen,
    film_of,
    page_of,
    sample,
    wait_for_film,
)
from tests.support import wait_for

pytestmark = pytest.mark.integration
LEVELS = 6


def test_a_film_has_every_level_and_ends_with_the_sample_of_its_seed(
    page: Page, server: PageServer, model: drl_dist.Model
) -> None:
    page.emulate_media(reduced_motion="no-preference")
    page.goto(server.url)
    expect(page.get_by_role("heading", name="tiny")).to_be_visible()
    wait_for_film(page)
    page.get_by_label("Seed", exact=True).first.fill("7")
    page.get_by_role("button", name="Play", exact=True).click()
    expect(page.locator("#sample .reading")).to_contain_text("Level 6")
    wait_for_film(page)
    expect(page.locator("#sample .film")).to_have_attribute("data-frames", str(LEVELS + 1))
    expect(page.locator("#sample .strip canvas")).to_have_count(LEVELS + 1)
    image = model.sample(1, seed=7, batch_size=1)[0]
    expect_image(film_of(page), image)
    expect_on_the_screen(film_of(page), image)
    # Back through the levels, each of which has its frame and its energy.
    frames = list(server.backend.host.engine.submit(SampleRequest(seed=7)).frames())
    scrubber = page.get_by_role("slider", name="Noise level").first
    scrubber.focus()
    for frame in reversed(frames):
        expect(film_of(page)).to_have_attribute(
            "aria-label", "The image" if frame.level == 0 else f"Noise level {frame.level}"
        )
        expect_image(film_of(page), frame.image)
        expect(scrubber).to_have_attribute("aria-valuetext", f"level {frame.level} of {LEVELS}")
        expect(page.locator("#sample .strip .shown")).to_have_attribute("data-level", str(frame.level))
        energy = "before the first chain" if frame.energy is None else f"{abs(frame.energy):.1f} + constant"
        expect(page.locator("#sample .reading")).to_contain_text(energy)
        scrubber.press("ArrowLeft")
    page.get_by_role("button", name="Play the film again").first.click()
    wait_for_film(page)
    page.get_by_role("button", name="Another seed").click()
    expect(page.get_by_label("Seed", exact=True).first).not_to_have_value("7")


def test_a_dark_page_for_those_who_want_one(browser: Browser, server: PageServer) -> None:
    shades: list[int] = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, reduced_motion="reduce")
        page = context.new_page()
        page.goto(server.url)
        wait_for_film(page)
        with Image.open(io.BytesIO(page.screenshot())) as shot:
            shades.append(shot.convert("L").getpixel((5, 5)))
        # The same pixels in both: only what is around them is dark.
        expect_image(film_of(page), sample(server.backend.host, 0))
        context.close()
    assert shades[0] > 200 and shades[1] < 50


def test_who_wants_no_motion_is_shown_no_film(browser: Browser, server: PageServer) -> None:
    server.backend.held_after = 4
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto(server.url)
    expect(page.locator("#sample .strip canvas")).to_have_count(4)
    page.wait_for_timeout(300)
    assert page.locator("#sample .reading").inner_text() == ""
    server.backend.held_after = None
    wait_for_film(page)
    context.close()


def test_a_film_goes_on_where_the_server_is_killed_and_comes_back(page: Page, server: PageServer) -> None:
    page.emulate_media(reduced_motion="no-preference")
    server.backend.held_after = 3
    page.goto(server.url)
    expect(page.locator("#sample .strip canvas")).to_have_count(3)
    server.kill()
    status = page.locator("#sample").get_by_role("status")
    expect(status).to_contain_text("A pause, not a failure")
    server.backend.held_after = None
    server.start()
    wait_for_film(page)
    expect(status).to_be_empty()
    assert [type(visit) for visit in server.backend.visits] == [SampleRequest, SampleRequest]
    # No frame twice.
    shown = page.locator("#sample .strip canvas").evaluate_all("all => all.map(canvas => Number(canvas.dataset.level))")
    assert shown == list(range(LEVELS, -1, -1))
    expect_image(film_of(page), sample(server.backend.host, 0))
    expect(page.locator("#sample").get_by_role("alert")).to_be_hidden()


def test_a_server_that_stays_away_is_given_up_and_one_that_says_nothing_is_asked_again(
    page: Page, server: PageServer
) -> None:
    page.clock.install()
    server.backend.held_after = 3
    page.goto(server.url)
    expect(page.locator("#sample .strip canvas")).to_have_count(3)
    page.clock.fast_forward("00:31")
    wait_for(lambda: len(server.backend.visits) == 2)
    server.kill()
    alert = page.locator("#sample [role=alert]")
    num_waits = 0
    while not alert.text_content():
        assert num_waits < 60, "it never gives up"
        num_waits += 1
        page.clock.fast_forward("00:05")
        page.wait_for_timeout(50)
    assert num_waits > 10
    expect(alert).to_contain_text("20 attempts brought nothing")


def test_a_visitor_whose_token_is_gone_is_told_so(browser: Browser, host: ModelHost) -> None:
    token = "0123456789abcdef"
    with page_of(host, Access(digest(token))) as server:
        context = browser.new_context(reduced_motion="reduce")
        page = context.new_page()
        page.goto(f"{server.url}/?token={token}")
        wait_for_film(page)
        context.clear_cookies()
        page.get_by_role("button", name="Another seed").click()
        expect(page.locator("#sample").get_by_role("alert")).to_contain_text("token: got none")
        context.close()


@pytest.mark.parametrize(
    ("kind", "clicks", "label"),
    [("class", ["bee"], '"bee"'), ("attributes", ["ant", "cow", "cow"], '"ant" & not "cow"')],
)
def test_labels_are_buttons(browser: Browser, tmp_path: Path, kind: str, clicks: list[str], label: str) -> None:
    write_model(tmp_path / "c", kind)
    model = drl_dist.load(tmp_path / "c")
    host = ModelHost(model, name="labelled", data=None, max_batch=16, max_waiting=64)
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    with host.running(), page_of(host) as server:
        page.goto(server.url)
        wait_for_film(page)
        expect(page.get_by_label("Guidance")).to_be_hidden()
        for name in clicks:
            choice = page.locator("#labels").get_by_text(name)
            choice.click()
        wait_for(lambda: server.backend.visits[-1].label == label)
        page.get_by_label("Guidance").fill("1.5")
        wait_for(lambda: server.backend.visits[-1].guidance == 1.5)
        wait_for_film(page)
        expect_image(film_of(page), model.sample(1, seed=0, labels=label, guidance=1.5, batch_size=1)[0])
        page.get_by_role("tab", name="Score").click()
        expect(page.locator("#score .verdict")).to_contain_text("No data were given to the server")
        context.close()


def test_a_browser_asks_for_files_of_the_page_again(page: Page, server: PageServer) -> None:
    for path in ("/", "/page/main.js", "/page/panels/fill.js", "/page/vendor/uPlot.esm.js"):
        answer = page.request.get(server.url + path)
        assert answer.headers["cache-control"] == "no-cache"
        again = page.request.get(server.url + path, headers={"If-None-Match": answer.headers["etag"]})
        # Of the page's folder, which is nearly all of it.
        assert again.status == (200 if path == "/" else 304)
