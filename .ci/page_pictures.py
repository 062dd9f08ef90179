"""Take the pictures of docs/serving.md: the page of a server that runs, in a browser.

    python .ci/page_pictures.py URL FOLDER

URL is that of a server whose model has classes, the last of which is shown, and that was given data. Needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
WIDE, PHONE = {"width": 1100, "height": 900}, {"width": 390, "height": 1100}
GUIDANCE = "1"
STROKE = [(0.1, 0.2), (0.5, 0.15), (0.85, 0.25), (0.5, 0.3), (0.15, 0.38), (0.5, 0.42), (0.85, 0.4)]
"""Of the brush, in shares of the picture's edges."""


def main(url: str, folder: str) -> int:
    """Write the pictures; the exit status."""
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, shown in (("film", film), ("fill", fill), ("phone", phone)):
            page = shown(browser, url)
            expect(page.locator(".working:visible")).to_have_count(0)
            # The last frames of a film, and of what Pico moves.
            page.wait_for_timeout(3000)
            page.screenshot(path=Path(folder) / f"page_{name}.png", full_page=name != "phone")
            page.context.close()
        browser.close()
    return 0


def film(browser: Browser, url: str) -> Page:
    """A film, with the energies of others before it."""
    page = browser.new_context(viewport=WIDE).new_page()
    page.goto(url)
    _choose_label(page)
    for seed in range(5):
        page.locator("#sample").get_by_label("Seed", exact=True).fill(str(seed))
        page.get_by_role("button", name="Play", exact=True).click()
        page.wait_for_timeout(3000)
    return page


def fill(browser: Browser, url: str) -> Page:
    """A picture that is painted over, and its completions, on a dark page."""
    page = browser.new_context(viewport=WIDE, color_scheme="dark").new_page()
    page.goto(url)
    _choose_label(page)
    page.wait_for_timeout(3000)
    page.get_by_role("button", name="paint over it").click()
    easel = page.get_by_role("application")
    easel.scroll_into_view_if_needed()
    box = easel.bounding_box()
    assert box is not None
    places = [(box["x"] + across * box["width"], box["y"] + down * box["height"]) for across, down in STROKE]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places:
        page.mouse.move(*place, steps=20)
    page.mouse.up()
    return page


def phone(browser: Browser, url: str) -> Page:
    """What the model finds unlikely, on a telephone: a picture that gets brighter from its top to its bottom."""
    context = browser.new_context(viewport=PHONE, device_scale_factor=1.5)
    page = context.new_page()
    page.goto(f"{url}/#score")
    expect(page.locator(".levels > li").first).to_be_visible()
    ramp = io.BytesIO()
    Image.linear_gradient("L").save(ramp, "PNG")
    file = FilePayload(name="ramp.png", mimeType="image/png", buffer=ramp.getvalue())
    page.locator("#score input[type=file]").set_input_files(file)
    expect(page.locator(".verdict")).to_contain_text("less probable")
    return page


def _choose_label(page: Page) -> None:
    page.locator("#labels label").last.click()
    page.get_by_label("Guidance").fill(GUIDANCE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL")
    parser.add_argument("folder", metavar="FOLDER")
    given = parser.parse_args()
    sys.exit(main(given.url, given.folder))
