"""The panel of outcomes, with outcomes on and off."""

import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.served import CHROMIUM, Served

expect = pytest.importorskip("playwright.sync_api").expect

pytestmark = pytest.mark.program(*CHROMIUM)


@pytest.fixture(scope="module")
def counting(pictured_registry: Path, redis_url: str) -> Iterator[Served]:
    service = Served(
        pictured_registry,
        VLM2REC_OUTCOMES="true",
        VLM2REC_REDIS_URL=redis_url,
        VLM2REC_REDIS_PREFIX=f"test-{uuid.uuid4().hex}",
    )
    yield service
    service.end()


def test_it_shows_what_slots_bring(open_page: Callable[..., Any], counting: Served) -> None:
    page = open_page(counting.url)  # its own recommendations are counted
    for _ in range(20):  # counts are stored once a second
        page.locator("#outcomes summary").click()
        page.locator("#outcomes-rows tr, #outcomes-note:not([hidden])").first.wait_for()
        if page.locator("#outcomes-rows tr").count():
            break
        page.locator("#outcomes summary").click()
        page.wait_for_timeout(200)
    expect(page.locator("#outcomes-table")).to_be_visible()
    rows = page.locator("#outcomes-rows tr")
    assert set(rows.locator("th").all_text_contents()) <= {"text", "image", "behaviour", "none"}
    assert rows.first.locator("td").nth(1).text_content() == "0.00 %"


def test_it_says_what_is_not_counted(open_page: Callable[..., Any], pictured_registry: Path, redis_url: str) -> None:
    sampled = {"VLM2REC_OUTCOMES": "true", "VLM2REC_OUTCOMES_SAMPLE": "1e-9", "VLM2REC_REDIS_URL": redis_url}
    service = Served(pictured_registry, **sampled, VLM2REC_REDIS_PREFIX=f"test-{uuid.uuid4().hex}")
    try:
        page = open_page(service.url)
        for _ in range(20):  # counts are stored once a second
            page.locator("#outcomes summary").click()
            expect(page.locator("#outcomes-note")).to_have_text("No answer of the last day is counted yet.")
            if page.locator("#outcomes-left-out").is_visible():
                break
            page.locator("#outcomes summary").click()
            page.wait_for_timeout(200)
        expect(page.locator("#outcomes-left-out")).to_have_text(
            re.compile(r"^Not counted, or not in full: (\d+) answers \(\1 outside of the sample\)\.$")
        )
    finally:
        service.end()


def test_it_waits_as_long_as_the_service_asks_for(open_page: Callable[..., Any], counting: Served) -> None:
    page = open_page(counting.url)
    problem = {"status": 503, "body": '{"detail": "a reason"}', "headers": {"Retry-After": "1"}}
    page.route("**/outcomes?**", lambda route: route.fulfill(**problem), times=1)
    page.locator("#outcomes summary").click()
    expect(page.locator("#outcomes-note")).to_have_text("a reason")
    expect(page.locator("#outcomes-note")).not_to_have_text("a reason")  # asked again by itself


def test_off_it_says_how_to_switch_it_on(page: Any) -> None:
    page.locator("#outcomes summary").click()
    expect(page.locator("#outcomes-note")).to_contain_text("VLM2REC_OUTCOMES=true")
    expect(page.locator("#outcomes-table")).to_be_hidden()
