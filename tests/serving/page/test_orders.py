"""Controls of the page in orders that nobody has planned: what is shown belongs together, and mistakes are told."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from playwright.sync_api import Browser, Locator, Page, expect

import drl_dist
from drl_dist.jobs.serve.host import ModelHost
from drl_dist.serving.requests import DenoiseRequest, InpaintRequest, SampleRequest
from tests.helpers.labelled import write_model
from tests.serving.page.browsing import (
    PageServer,
    drag,
    expect_completions,
    film_of,
    grey,
    on_screen,
    page_of,
    sample,
    wait_for_film,
)
from tests.support import wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelHost]:
    folder = tmp_path_factory.mktemp("labelled") / "c"
    write_model(folder, "class")
    host = ModelHost(drl_dist.load(folder), name="labelled", data=None, max_batch=16, max_waiting=64)
    with host.running():
        yield host


@pytest.fixture
def of_labels(browser: Browser, labelled: ModelHost) -> Iterator[tuple[Page, PageServer]]:
    """The page over a model of classes."""
    context = browser.new_context(reduced_motion="reduce")
    with page_of(labelled) as server:
        page = context.new_page()
        page.goto(server.url)
        wait_for_film(page)
        yield page, server
        context.close()


def of(label: str) -> re.Pattern[str]:
    return re.compile(rf"label=%22{label}%22$")


def test_a_label_holds_for_tabs_that_are_opened_later(of_labels: tuple[Page, PageServer]) -> None:
    page, server = of_labels
    canvases = page.locator("#between canvas")
    page.get_by_role("tab", name="Between").click()
    expect(canvases.nth(1)).to_have_attribute("data-shows", re.compile("seed=0"))
    page.locator("#labels").get_by_text("bee").click()
    expect(canvases.nth(1)).to_have_attribute("data-shows", of("bee"))
    # The film from before is not one of bees.
    page.get_by_role("tab", name="Sample").click()
    wait_for(lambda: server.backend.visits[-1] == SampleRequest(seed=0, label='"bee"'))
    bee = server.backend.host.engine.submit(SampleRequest(label='"bee"')).image()
    wait_for(lambda: torch.equal(grey(film_of(page)), bee))
    page.locator("#labels").get_by_text("cow").click()
    page.get_by_role("tab", name="Between").click()
    for canvas in canvases.all():
        expect(canvas).to_have_attribute("data-shows", of("cow"))
    num_visits = len(server.backend.visits)
    page.get_by_role("tab", name="Fill in").click()
    wait_for(lambda: len(server.backend.visits) == num_visits + 1)
    page.get_by_role("tab", name="Between").click()
    page.wait_for_timeout(300)
    # Nothing has changed since.
    assert len(server.backend.visits) == num_visits + 1


def test_a_picture_is_denoised_again_with_another_label(of_labels: tuple[Page, PageServer]) -> None:
    page, server = of_labels
    page.get_by_role("tab", name="Denoise").click()
    wait_for_film(page, "#denoise")
    page.locator("#labels").get_by_text("ant").click()

    def is_asked() -> bool:
        last = server.backend.visits[-1]
        return isinstance(last, DenoiseRequest) and last.label == '"ant"'

    wait_for(is_asked)


def test_no_half_of_an_image_is_taken_to_another_tab(page: Page, server: PageServer) -> None:
    page.goto(server.url)
    wait_for_film(page)
    taken = page.get_by_role("button", name="score it")
    expect(taken).to_be_enabled()
    server.backend.held_after = 3
    page.get_by_role("button", name="Another seed").click()
    expect(page.locator("#sample .strip canvas")).to_have_count(3)
    expect(taken).to_be_disabled()
    page.locator("#sample").get_by_role("button", name="Stop").click()
    expect(taken).to_be_disabled()
    server.backend.held_after = None
    page.get_by_label("Seed", exact=True).first.fill("5")
    page.get_by_role("button", name="Play", exact=True).click()
    expect(taken).to_be_enabled()
    taken.click()
    wait_for(lambda: torch.equal(grey(page.locator("[data-end=seen]")), sample(server.backend.host, 5)))


@pytest.fixture
def easel(page: Page, server: PageServer) -> Locator:
    """With a sample on it."""
    page.goto(f"{server.url}/#fill")
    wait_for(lambda: len(server.backend.visits) == 1)
    expect(page.locator("#fill .working")).to_be_hidden()
    return page.get_by_role("application")


@pytest.mark.parametrize("count", ["", "0", "-2", "7", "2.5"])
def test_a_number_of_completions_that_cannot_be_is_told(
    page: Page, server: PageServer, easel: Locator, count: str
) -> None:
    page.get_by_label("Completions").fill(count)
    drag(page, easel, (1.5, 2.5), (5.5, 2.5))
    expected = f"completions: got '{count}', expected a whole number from 1 to 4; correct it."
    expect(page.locator("#fill").get_by_role("alert")).to_have_text(expected)
    assert not any(isinstance(visit, InpaintRequest) for visit in server.backend.visits)


def test_the_other_button_of_the_mouse_paints_nothing(page: Page, server: PageServer, easel: Locator) -> None:
    easel.scroll_into_view_if_needed()
    page.get_by_label("Fill in after each stroke").uncheck()
    page.mouse.move(*on_screen(easel, (1.5, 2.5)))
    page.mouse.down(button="right")
    page.mouse.move(*on_screen(easel, (5.5, 2.5)), steps=3)
    page.mouse.up(button="right")
    page.get_by_role("button", name="Fill in", exact=True).click()
    expect(page.locator("#fill").get_by_role("alert")).to_contain_text("mask: got nothing painted")


def test_strokes_of_the_keyboard_are_answered_as_those_of_the_mouse(
    page: Page, server: PageServer, easel: Locator
) -> None:
    page.get_by_label("Brush").fill("1")
    easel.focus()
    page.keyboard.down("Shift")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.up("Shift")
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[4, 4:7] = True
    expect_completions(page, server, mask)


def test_text_may_be_dropped_into_a_field(page: Page, server: PageServer) -> None:
    page.goto(server.url)
    wait_for_film(page)
    for selector in ("input[name=seed]", "#score input[name=source-seed]"):
        is_kept_from_it = page.evaluate(
            """(selector) => {
                const text = new DataTransfer();
                text.setData("text/plain", "12");
                const kinds = ["dragover", "drop"].map(
                    (kind) => new DragEvent(kind, { dataTransfer: text, bubbles: true, cancelable: true }));
                return kinds.map((event) => !document.querySelector(selector).dispatchEvent(event));
            }""",
            selector,
        )
        assert is_kept_from_it == [False, False]
