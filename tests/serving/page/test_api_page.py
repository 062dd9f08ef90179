"""The API's own page shows every address, from this server alone, and makes an image."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.serving.page.browsing import PageServer


def test_every_address_is_shown_and_can_be_tried(page: Page, server: PageServer) -> None:
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.goto(f"{server.url}/api")
    shown = page.locator(".opblock-summary-path")
    paths = list(page.request.get(f"{server.url}/api/openapi.json").json()["paths"])
    expect(shown).to_have_count(len(paths))
    assert sorted(text.replace("\u200b", "") for text in shown.all_text_contents()) == sorted(paths)
    sample = page.locator(".opblock", has=page.locator('[data-path="/api/sample"]'))
    sample.locator(".opblock-summary-control").click()
    sample.get_by_role("button", name="Try it out").click()
    sample.get_by_placeholder("seed").fill("7")
    sample.get_by_role("button", name="Execute").click()
    expect(sample.locator(".responses-table.live-responses-table tbody .response-col_status")).to_contain_text("200")
    assert [visit.seed for visit in server.backend.visits] == [7]
    assert told == []
