"""Painting, ways between images, noise and scores, by mouse, finger and keyboard."""

from __future__ import annotations

import base64
import io
import re
import statistics

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import drl_dist
from drl_dist.data.shards import encode_png
from drl_dist.jobs.serve.web.uploads import read_image
from drl_dist.serving.requests import DenoiseRequest
from tests.data.sets import pixels_of
from tests.serving.page.browsing import (
    PageServer,
    drag,
    drop,
    expect_completions,
    expect_image,
    film_of,
    grey,
    on_screen,
    press_until,
    sample,
    wait_for_film,
)
from tests.support import wait_for

pytestmark = pytest.mark.integration
LEVELS = 6
PHONE = {"width": 390, "height": 844}
COLUMNS = """canvas => {
    const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const columns = { mark: [], bars: [] };
    for (let at = 0; at < data.length; at += 4) {
        const rgb = data.slice(at, at + 3).join();
        if (rgb === "194,65,12") columns.mark.push((at / 4) % width);
        if (rgb === "142,163,201") columns.bars.push((at / 4) % width);
    }
    return columns;
}"""
"""Columns of all pixels of a histogram that have the colour of the mark, or of the bars."""


def test_painting_with_the_mouse_changes_what_is_painted_alone(page: Page, server: PageServer) -> None:
    page.goto(f"{server.url}/#fill")
    easel = page.get_by_role("application", name="Picture to paint over")
    wait_for(lambda: len(server.backend.visits) == 1)
    expect(page.locator("#fill .working")).to_be_hidden()
    page.get_by_label("Brush").fill("1")
    drag(page, easel, (1.5, 2.5), (5.5, 2.5))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2, 1:6] = True
    expect_completions(page, server, mask)
    # Erased again, pixels are the picture's own.
    page.get_by_label("Eraser").check()
    drag(page, easel, (1.5, 2.5), (2.5, 2.5))
    mask[2, 1:3] = False
    expect_completions(page, server, mask)
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Fill in", exact=True).click()
    expect(page.locator("#fill").get_by_role("alert")).to_contain_text("mask: got nothing painted")


def test_a_finger_paints_on_a_phone_and_nothing_is_wider_than_the_screen(browser: Browser, server: PageServer) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True, reduced_motion="reduce")
    page = context.new_page()
    page.goto(server.url)
    wait_for_film(page)
    for tab in page.get_by_role("tab").all():
        tab.tap()
        expect(page.locator(".working:visible")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab.inner_text()
    page.get_by_role("tab", name="Fill in").tap()
    page.get_by_label("Brush").fill("1")
    easel = page.get_by_role("application", name="Picture to paint over")
    easel.scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    wire = context.new_cdp_session(page)
    places = [(6.5, row + 0.5) for row in range(2, 7)]
    for kind, place in [("touchStart", places[0]), *(("touchMove", place) for place in places), ("touchEnd", None)]:
        points = [] if place is None else [dict(zip("xy", on_screen(easel, place), strict=True))]
        wire.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:7, 6] = True
    expect_completions(page, server, mask)
    # The finger has painted instead of moving the page.
    assert page.evaluate("scrollY") == before
    context.close()


def test_the_ends_of_a_way_are_the_two_samples(page: Page, server: PageServer, model: drl_dist.Model) -> None:
    page.goto(f"{server.url}/#between")
    middle, way = page.locator("[data-end=middle]"), page.get_by_label("Way from the first to the second")
    first, second = (model.sample(1, seed=seed, batch_size=1)[0] for seed in (0, 1))
    expect(middle).to_have_attribute("data-shows", re.compile("weight=0.5&|weight=0.5$"))
    expect_image(page.locator("[data-end=first]"), first)
    expect_image(page.locator("[data-end=second]"), second)
    half = grey(middle)
    way.focus()
    way.press("Home")
    expect(middle).to_have_attribute("data-shows", re.compile(r"weight=0(&|$)"))
    expect_image(middle, first)
    box = way.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] / 2, steps=7)
    page.mouse.up()
    expect(middle).to_have_attribute("data-shows", re.compile(r"weight=1(&|$)"))
    expect_image(middle, second)
    # What is no longer wanted is abandoned, and what was had before is not asked for again.
    server.backend.held_after = 2
    with page.expect_event("requestfailed", lambda request: "weight=0.95" in request.url):
        way.press("ArrowLeft")
        wait_for(lambda: getattr(server.backend.visits[-1], "weight", None) == 0.95)
        way.press("ArrowLeft")
    num_visits = len(server.backend.visits)
    way.fill("0.5")
    expect(middle).to_have_attribute("data-shows", re.compile("weight=0.5&|weight=0.5$"))
    assert torch.equal(grey(middle), half)
    assert len(server.backend.visits) <= num_visits + 1


def test_a_dropped_picture_is_scored_at_every_level_among_the_data(page: Page, server: PageServer) -> None:
    page.goto(f"{server.url}/#score")
    host = server.backend.host
    levels = page.locator("#score .levels > li")
    expect(levels).to_have_count(LEVELS)
    # A photograph, of another size and in colour; also on the tabs where nothing asks for one.
    picture = pixels_of(3, channels=3, resolution=32)[:, :, :24]
    page.get_by_role("tab", name="Sample").click()
    with page.expect_response("**/api/log_density") as answered:
        drop(page, "#sample", "own.png", encode_png(picture.copy()))
    found = answered.value.json()["levels"]
    assert [level["level"] for level in found] == list(range(LEVELS))
    fitted = read_image(base64.b64encode(encode_png(picture.copy())).decode(), (1, 8, 8), fit=True)
    expect_image(page.locator("[data-end=seen]"), fitted)
    expect(page.locator("#score .working")).to_be_hidden()
    expect(levels).to_have_count(LEVELS)
    reference = host._reference()
    assert reference is not None
    for level, known, item in zip(found, reference, levels.all(), strict=True):
        share = sum(value < level["log_density"] for value in known) / len(known)
        assert share == level["share_below"]
        words = item.inner_text()
        assert f"Level {level['level']}" in words and f"{abs(level['log_density']):.1f} + constant" in words
        assert re.search(rf"more probable than {100 * share:.0f}(\.\d)?\s% of the data", words), (share, words)
        # The mark is where the words say, but for the width of a bar.
        columns = item.locator(".histogram canvas").evaluate(COLUMNS)
        place = statistics.mean(columns["mark"])
        left = sum(column < place for column in columns["bars"]) / len(columns["bars"])
        assert len(columns["mark"]) > 50 and abs(left - share) < 0.15, (left, share)
        gradient = base64.b64decode(level["gradient"])
        with Image.open(io.BytesIO(gradient)) as image:
            red = torch.tensor(list(image.getchannel("R").getdata())).reshape(8, 8)
        seen = item.locator("canvas.pixels").evaluate(
            "canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, 8, 8).data).filter((_, i) => i % 4 == 0)"
        )
        assert torch.equal(torch.tensor(seen).reshape(8, 8), red)


def test_a_picture_of_another_size_is_fitted_only_where_that_is_asked_for(page: Page, server: PageServer) -> None:
    picture = base64.b64encode(encode_png(pixels_of(3, channels=3, resolution=32))).decode()
    address = f"{server.url}/api/picture"
    answer = page.request.post(address, data={"image": picture, "fit": True})
    with Image.open(io.BytesIO(base64.b64decode(answer.json()["image"]))) as image:
        seen = torch.tensor(list(image.getdata()), dtype=torch.uint8).reshape(1, 8, 8)
        assert image.mode == "L" and torch.equal(seen, read_image(picture, (1, 8, 8), fit=True))
    refused = page.request.post(address, data={"image": picture})
    assert refused.status == 400 and "image: got 32x32 pixels, expected 8x8 pixels" in refused.json()["error"]


def test_a_file_that_is_too_large_is_not_even_sent(page: Page, server: PageServer) -> None:
    page.goto(f"{server.url}/#fill")
    expect(page.locator("#fill .working")).to_be_hidden()
    limit = page.request.get(f"{server.url}/api/model").json()["limits"]["body_bytes"]
    page.on("request", lambda request: pytest.fail("it was sent") if request.method == "POST" else None)
    large = {"name": "a.png", "mimeType": "image/png", "buffer": bytes(3 * limit // 4)}
    page.locator("#fill input[type=file]").set_input_files(large)
    expect(page.locator("#fill").get_by_role("alert")).to_contain_text("choose a smaller picture")


def test_a_picture_that_cannot_be_read_is_one_sentence_where_it_was_dropped(page: Page, server: PageServer) -> None:
    page.goto(f"{server.url}/#score")
    expect(page.locator("#score .levels > li")).to_have_count(LEVELS)
    broken = encode_png(pixels_of(3))[:-20]
    page.locator("#score input[type=file]").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": broken}
    )
    alert = page.locator("#score").get_by_role("alert")
    expect(alert).to_contain_text("image: got a file that cannot be decoded")
    assert alert.inner_text().count("expected") == 1 and "\n" not in alert.inner_text()
    expect(page.get_by_role("alert").filter(has_text="image")).to_have_count(1)
    page.get_by_role("tab", name="Sample").click()
    wait_for_film(page)
    page.get_by_label("Seed", exact=True).first.fill("-1")
    page.get_by_role("button", name="Play", exact=True).click()
    expect(page.locator("#sample").get_by_role("alert")).to_contain_text("seed: got '-1', expected")


def test_noise_that_was_added_is_taken_away_again(page: Page, server: PageServer) -> None:
    page.goto(server.url)
    wait_for_film(page)
    page.get_by_role("button", name="add noise to it").click()
    wait_for_film(page, "#denoise")
    noisy = grey(page.locator("#denoise .noisy"))
    assert not torch.equal(noisy, sample(server.backend.host, 0))
    (asked,) = (visit for visit in server.backend.visits if isinstance(visit, DenoiseRequest))
    assert torch.equal(asked.image, noisy)
    words = page.locator("#denoise .value").first.inner_text()
    assert words == f"{asked.noise_std:.1f} grey levels of 255"
    expect_image(film_of(page, "#denoise"), server.backend.host.engine.submit(asked).image())
    # Noise of the strength that the slider says, where black and white have room for it.
    page.locator("#denoise [name=noise]").fill("60")
    wait_for(lambda: server.backend.visits[-1] is not asked)
    (again,) = (visit for visit in server.backend.visits if isinstance(visit, DenoiseRequest) and visit is not asked)
    assert again.noise_std < asked.noise_std
    picture = sample(server.backend.host, 0).float()
    first, second = (visit.image.float() - picture for visit in (asked, again))
    is_free = ((asked.image > 0) & (asked.image < 255)) & ((again.image > 0) & (again.image < 255))
    # The same noise, but for its strength.
    assert float((first / asked.noise_std - second / again.noise_std)[is_free].abs().max()) < 1 / again.noise_std + 0.1
    assert 0.5 < float((first[is_free] / asked.noise_std).std()) < 1.5


def test_everything_can_be_done_by_keyboard(page: Page, server: PageServer) -> None:
    page.goto(server.url)
    wait_for_film(page)
    press_until(page, "Tab", "tab-sample")
    for key, tab in (("ArrowLeft", "score"), ("Home", "sample"), ("ArrowRight", "fill"), ("End", "score")):
        page.keyboard.press(key)
        expect(page.locator(f"#tab-{tab}")).to_be_focused()
        expect(page.locator(f"#{tab}")).to_be_visible()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#fill")).to_be_visible()
    expect(page.locator("#fill .working")).to_be_hidden()
    press_until(page, "Tab", "brush")
    page.keyboard.press("Home")
    press_until(page, "Shift+Tab", "Picture to paint over")
    # From the middle, down to the right.
    page.keyboard.press(" ")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[4, 4] = mask[4, 5] = mask[5, 5] = True
    press_until(page, "Tab", "Fill in")
    page.keyboard.press("Enter")
    expect_completions(page, server, mask)
