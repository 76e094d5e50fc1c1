"""The page under real clicks and keys in a real browser, against a real service."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.served import CHROMIUM, HOSTILE

expect = pytest.importorskip("playwright.sync_api").expect

pytestmark = pytest.mark.program(*CHROMIUM)

CARDS = "#grid .card[data-item]"


def ids(page: Any, selector: str = CARDS) -> list[str]:
    return page.locator(selector).evaluate_all("cards => cards.map((card) => card.dataset.item)")


def asked(page: Any, act: Callable[[], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do something and wait for the recommendations that follow: the request's body and the answer, shown by now."""
    with page.expect_response(lambda response: response.url.endswith("/recommend") and response.ok) as caught:
        act()
    answer = caught.value.json()
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
    return json.loads(caught.value.request.post_data), answer


def curl_body(page: Any) -> Any:
    words = shlex.split(page.locator("#curl").text_content())
    return json.loads(words[words.index("-d") + 1])


def test_it_begins_with_the_first_sample(page: Any) -> None:
    assert ids(page, "#history li") == ["i1", "i2", "i4"]
    expect(page.locator(".shopper[aria-pressed=true]")).to_have_count(1)
    expect(page.locator(CARDS)).to_have_count(24)
    expect(page.locator("#truth")).to_contain_text("Really taken next")
    expect(page.locator("#facts")).to_contain_text("from the sequence")
    expect(page.locator("#facts [data-fact=latency]")).to_have_text(re.compile(r"^\d+\.\d ms$"))
    expect(page.locator("#announcement")).to_contain_text("24 recommendations")
    shares = page.locator("#grid .bar").first.get_attribute("aria-label")
    assert [part.split()[0] for part in shares.split(", ")] == ["text", "image", "behaviour"]


def test_what_is_touched_grows_the_history_and_changes_the_answer(page: Any) -> None:
    before = ids(page)
    body, answer = asked(page, page.locator(f"{CARDS} .card-main").first.click)
    assert body["items"] == ["i1", "i2", "i4", before[0]]
    assert ids(page, "#history li") == ["i1", "i2", "i4", before[0]]
    assert ids(page) == [item["item_id"] for item in answer["items"]] != before
    assert before[0] not in ids(page)
    expect(page.locator("#truth")).to_be_hidden()  # no longer the sample's history
    body, _ = asked(page, page.locator("#history li button").nth(1).click)
    assert body["items"] == ["i1", "i4", before[0]]
    body, answer = asked(page, page.locator("#history-clear").click)
    assert (body["items"], answer["strategy"]) == ([], "popular")
    expect(page.locator("#results-title")).to_have_text("Everyone’s favourites")
    assert ids(page)[0] == "i3"  # the most popular one of the made catalogue
    expect(page.locator(CARDS).first).to_contain_text("Popular with everyone")


def test_a_slider_ranks_again_and_the_command_is_what_was_sent(page: Any, served: Any) -> None:
    before = ids(page)
    slider = page.get_by_role("slider", name="image")
    slider.focus()
    body, answer = asked(page, lambda: page.keyboard.press("End"))
    assert body["slot_weights"] == {"text": 1, "image": 3, "behaviour": 1}
    assert slider.get_attribute("aria-valuetext") == "× 3.0"
    assert ids(page) == [item["item_id"] for item in answer["items"]] != before
    page.locator("#request summary").click()
    assert curl_body(page) == body
    assert shlex.split(page.locator("#curl").text_content())[2] == f"{served.url}recommend"
    again = page.request.post(f"{served.url}recommend", data=curl_body(page)).json()
    assert [item["item_id"] for item in again["items"]] == ids(page)
    body, _ = asked(page, page.get_by_role("button", name="Back to the defaults").click)
    assert "slot_weights" not in body
    assert ids(page) == before


def test_no_id_breaks_out_of_the_command(page: Any) -> None:
    body = json.dumps({"items": ["it's", '$(id) `id` \\ " ;\n#']})
    made = "([body]) => import('/playground/session.js').then((own) => own.curlOf('http://a/b', body, true))"
    command = page.evaluate(made, [body])
    printed = subprocess.run(
        ["sh", "-c", f"curl() {{ printf '%s\\0' \"$@\"; }}\n{command}"], capture_output=True, check=True
    )
    words = printed.stdout.decode().split("\0")[:-1]
    assert words == ["-s", "http://a/b", "-H", "Content-Type: application/json", "-H", "X-API-Key: ", "-d", body]


@pytest.mark.slow
def test_bars_show_the_shares_of_the_answer(page: Any) -> None:
    _, answer = asked(page, page.locator(".shopper").nth(1).click)
    parts = answer["items"][0]["contributions"]
    total = sum(abs(part) for part in parts.values())
    grown = (
        page.locator(f"{CARDS} .bar")
        .first.locator(".segment")
        .evaluate_all("segments => segments.map((segment) => Number(segment.style.flexGrow))")
    )
    assert grown == pytest.approx([abs(part) / total for part in parts.values()], abs=1e-3)
    against = page.locator(f"{CARDS} .bar").first.locator(".against").count()
    assert against == sum(part < 0 for part in parts.values())


def test_what_speaks_against_an_item_counts_by_its_size(page: Any) -> None:
    made = """async () => {
        const { inWords, shareBar, sharesOf } = await import('/playground/shares.js')
        const parts = { text: 1, image: -3 }
        const against = [...shareBar(parts, ['text', 'image']).children].map((one) => one.classList.contains('against'))
        return [sharesOf(parts).map((entry) => entry.share), inWords(sharesOf(parts)), against]
    }"""
    assert page.evaluate(made) == [[0.25, 0.75], "text 25 %, image 75 % against", [False, True]]


@pytest.mark.slow
def test_filters_come_from_the_catalogue_and_hold(page: Any) -> None:
    before = ids(page)
    category = page.get_by_label("category", exact=True)
    assert category.locator("option").all_text_contents() == ["any", "bags", "hats", "shoes"]
    body, _ = asked(page, lambda: category.select_option("hats"))
    assert body["filter"] == {"must": [{"field": "category", "eq": "hats"}]}
    rows = [int(item_id[1:]) for item_id in ids(page) if item_id[1:].isdigit()]
    assert rows
    assert all(row % 3 == 1 for row in rows)
    body, _ = asked(page, lambda: page.get_by_label("price, at most").fill("0"))
    assert body["filter"]["must"][1] == {"field": "price", "lte": 0}
    expect(page.locator("#grid-empty")).to_be_visible()
    asked(page, page.locator("#tuning-reset").click)
    assert category.input_value() == ""
    assert ids(page) == before


def test_more_like_this_opens_and_closes_by_keyboard(page: Any) -> None:
    first = ids(page)[0]
    button = page.locator(f"{CARDS} .quiet").first
    button.focus()
    with page.expect_response("**/similar") as caught:
        page.keyboard.press("Enter")
    assert json.loads(caught.value.request.post_data)["item_id"] == first
    expect(page.get_by_role("dialog")).to_be_visible()
    found = [item["item_id"] for item in caught.value.json()["items"]]
    expect(page.locator("#similar-grid .card[data-item]")).to_have_count(len(found))
    assert ids(page, "#similar-grid .card") == found
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert button.evaluate("button => button === document.activeElement")


def test_a_history_is_built_by_keyboard_alone(page: Any) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#results-title")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator(f"{CARDS} .card-main").first).to_be_focused()
    outline = page.locator(f"{CARDS} .card-main").first.evaluate("card => getComputedStyle(card).outlineStyle")
    assert outline == "solid"
    body, _ = asked(page, lambda: page.keyboard.press("Enter"))
    assert len(body["items"]) == 4
    # The card went away; the focus stays in the grid, at its place.
    expect(page.locator(f"{CARDS} .card-main").first).to_be_focused()
    assert page.locator("button:not([aria-label])").evaluate_all("all => all.every((one) => one.textContent.trim())")


@pytest.mark.slow
def test_the_catalogue_is_searched_and_paged(page: Any) -> None:
    expect(page.locator("#catalogue .tile")).to_have_count(24)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#catalogue .tile")).to_have_count(48)
    page.get_by_role("searchbox").fill("number 57")
    expect(page.locator("#catalogue .tile")).to_have_count(1)
    body, _ = asked(page, page.locator("#catalogue .tile button").click)
    assert body["items"][-1] == "i57"
    expect(page.locator("#catalogue .tile.taken")).to_have_count(1)
    page.get_by_role("searchbox").fill("no such thing")
    expect(page.locator("#catalogue-empty")).to_contain_text("no such thing")


def test_pictures_are_shown_and_missing_ones_have_a_placeholder(page: Any) -> None:
    page.locator("#catalogue").scroll_into_view_if_needed()
    expect(page.locator("#catalogue [data-item=i8] .picture.there img")).to_have_count(1)
    expect(page.locator("#catalogue [data-item=i7] .picture.none .initial")).to_have_text("I")


def test_a_title_is_written_in_its_own_direction(page: Any) -> None:
    titles = ["נעלי ספורט (מידה 42)", "Lamp"]

    def rename(route: Any) -> None:
        answer = route.fetch()
        items = answer.json()["items"]
        for item, title in zip(items, titles, strict=False):
            item["fields"]["title"] = title
        items[1]["nearest_history_item"] = items[0]["item_id"]
        route.fulfill(response=answer, json={**answer.json(), "items": items[:2]})

    page.route("**/recommend", rename, times=1)
    asked(page, page.locator(".shopper").nth(1).click)
    direction = "all => all.map((one) => getComputedStyle(one).direction)"
    assert page.locator(f"{CARDS} h3").evaluate_all(direction) == ["rtl", "ltr"]
    assert page.locator(f"{CARDS} .because b").last.evaluate("one => getComputedStyle(one).direction") == "rtl"
    page.locator(f"{CARDS} .quiet").first.click()
    expect(page.locator("#similar-title")).to_have_text(f"More like {titles[0]}")
    assert page.locator("#similar-title bdi").evaluate("one => getComputedStyle(one).direction") == "rtl"


def test_without_an_answer_the_page_says_so(page: Any) -> None:
    _, answer = asked(page, lambda: page.get_by_role("spinbutton", name="price").fill("-5"))
    assert answer["items"] == []
    expect(page.locator("#grid-empty")).to_be_visible()
    expect(page.locator("#truth")).to_contain_text("Nothing is recommended")


def test_hostile_titles_are_text(page: Any) -> None:
    expect(page.locator("#history [data-item=i2] .step-title")).to_have_text(HOSTILE)
    page.get_by_role("searchbox").fill("onerror")
    expect(page.locator("#catalogue .tile")).to_have_count(2)
    expect(page.locator("#catalogue .step-title").first).to_have_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src$='/x']").count() == 0
