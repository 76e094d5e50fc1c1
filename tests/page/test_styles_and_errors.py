"""Styles of the page, its content security policy, and the messages after errors."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.served import CHROMIUM, Served

expect = pytest.importorskip("playwright.sync_api").expect

pytestmark = pytest.mark.program(*CHROMIUM)

CARDS = "#grid .card[data-item]"
SHOTS = Path(__file__).parents[2] / ".screenshots"
KEY = "a-key-that-opens-this-shop"
OpenPage = Callable[..., Any]


@pytest.fixture
def own_service(pictured_registry: Path) -> Iterator[Callable[..., Served]]:
    """Start services that a test may end."""
    started: list[Served] = []

    def begin(**environment: str) -> Served:
        started.append(Served(pictured_registry, **environment))
        return started[-1]

    yield begin
    for service in started:
        service.end()


def refuse(status: int, detail: str, **headers: str) -> Callable[[Any], None]:
    problem = json.dumps({"type": "urn:vlm2rec:problem:x", "title": "x", "status": status, "detail": detail})

    def answer(route: Any) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        route.fulfill(status=status, body=problem, headers={"content-type": "application/problem+json", **named})

    return answer


def test_nothing_but_its_own_files_runs_and_nothing_is_asked_elsewhere(open_page: OpenPage, served: Served) -> None:
    page = open_page("about:blank", wait=False)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.url)
    page.locator(CARDS).first.wait_for()
    assert open_page.errors == []
    assert all(url.startswith(served.url) for url in asked)
    assert any(url.endswith("/playground/app.js") for url in asked)
    # That the policy is there and bites: what a hostile catalogue would want to do.
    refused = page.evaluate("""() => {
        const refused = [];
        try { document.body.innerHTML += '<b>markup</b>' } catch { refused.push('markup') }
        try { document.body.append(Object.assign(document.createElement('script'), { text: 'window.ran = 1' })) }
        catch { refused.push('script') }
        return refused
    }""")
    assert refused == ["markup", "script"]
    assert page.evaluate("window.ran") is None
    with page.expect_console_message(lambda said: said.text == "policy: connect-src"):
        page.evaluate("fetch('https://elsewhere.example/').catch(() => null)")
    blocked = {error.split()[-1] for error in open_page.errors}
    assert blocked == {"require-trusted-types-for", "connect-src"}
    open_page.errors.clear()


def test_a_small_phone_needs_no_sideways_scrolling(open_page: OpenPage, served: Served) -> None:
    page = open_page(served.url, viewport={"width": 320, "height": 780}, is_mobile=True, has_touch=True)
    expect(page.locator("#sliders")).to_be_hidden()  # folded away, so that pictures come first
    page.locator("#tuning summary").tap()
    page.locator("#request summary").tap()
    expect(page.locator("#sliders")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    with page.expect_response("**/recommend"):
        page.locator(f"{CARDS} .card-main").first.tap()
    expect(page.locator("#history li")).to_have_count(4)
    small = page.locator("button:visible, summary:visible").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect()).filter((box) => box.width < 24 || box.height < 24).length"
    )
    assert small == 0  # WCAG 2.2, 2.5.8


@pytest.mark.slow
def test_it_is_dark_for_those_who_want_it_and_readable_in_both(open_page: OpenPage, served: Served) -> None:
    contrast = """(selector) => {
        const rgb = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number)
        const light = (colour) => rgb(colour).map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
            .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0)
        const shown = document.querySelector(selector)
        let behind = shown
        while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement
        const pair = [getComputedStyle(shown).color, getComputedStyle(behind).backgroundColor].map(light).sort()
        return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)
    }"""
    papers = []
    for scheme in ("light", "dark"):
        page = open_page(served.url, color_scheme=scheme)
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for text in ("h1", ".lead", "#grid .card h3", "#grid .because", "#grid .quiet", ".facts li", ".rank", ".more"):
            assert page.evaluate(contrast, text) >= 4.5, (scheme, text)  # WCAG 2.2, 1.4.3
    light, dark = (sum(int(part) for part in paper[4:-1].split(",")) for paper in papers)
    assert light > 700
    assert dark < 90


@pytest.mark.slow
@pytest.mark.parametrize(("preference", "moves"), [("reduce", False), ("no-preference", True)])
def test_cards_move_only_without_reduced_motion(
    open_page: OpenPage, served: Served, preference: str, *, moves: bool
) -> None:
    page = open_page(served.url, reduced_motion=preference)
    page.evaluate("""() => {
        window.moved = 0
        const animate = Element.prototype.animate
        Element.prototype.animate = function (...how) { window.moved += 1; return animate.apply(this, how) }
    }""")
    with page.expect_response("**/recommend"):
        page.locator(".shopper").nth(1).click()
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
    assert (page.evaluate("window.moved") > 0) is moves


def test_the_last_answer_wins(page: Any) -> None:
    held: list[Any] = []

    def hold_the_first(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/recommend", hold_the_first)
    with page.expect_request("**/recommend"):
        page.locator(".shopper").nth(1).click()
    with page.expect_response("**/recommend") as caught:
        page.locator(".shopper").nth(2).click()
    wanted = [item["item_id"] for item in caught.value.json()["items"]]
    assert json.loads(caught.value.request.post_data)["items"] == ["i20"]
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
    assert held[0].request.failure is not None  # given up by the page itself
    assert page.locator(CARDS).evaluate_all("cards => cards.map((card) => card.dataset.item)") == wanted
    # The same for an answer that was there already when it became outdated, and for a failure.
    shown = page.evaluate("""async () => {
        const { Latest } = await import('/playground/latest.js')
        const [latest, shown] = [new Latest(), []]
        const show = { answered: (answer) => shown.push(answer), failed: () => shown.push('failed') }
        const ends = []
        const asked = [1, 2, 3].map(() => latest.ask(() => new Promise((...end) => ends.push(end)), show))
        ends[2][0]('third')
        ends[0][0]('first')
        ends[1][1](new Error('second'))
        await Promise.all(asked)
        return shown
    }""")
    assert shown == ["third"]


@pytest.mark.slow
@pytest.mark.parametrize(("status", "title"), [(429, "Too many requests"), (503, "not ready")])
def test_it_waits_as_long_as_the_service_asks_for(page: Any, status: int, title: str) -> None:
    page.route("**/recommend", refuse(status, "a reason", Retry_After="1"), times=1)
    page.locator(".shopper").nth(1).click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(title)
    expect(alert).to_contain_text("a reason")
    expect(page.locator(CARDS)).not_to_have_count(0)  # what was there stays
    expect(alert).to_be_hidden()  # asked again by itself
    expect(page.locator("#facts")).to_contain_text("2 items of history")


@pytest.mark.slow
def test_a_refusal_and_a_degraded_response_are_shown(page: Any) -> None:
    for slot in ("text", "image", "behaviour"):
        page.get_by_role("slider", name=slot).focus()
        page.keyboard.press("Home")
    expect(page.get_by_role("alert")).to_contain_text("slot_weights")  # the service's own words: not all may be 0
    expect(page.get_by_role("alert").get_by_role("button")).to_have_count(0)
    page.locator("#tuning-reset").click()
    expect(page.get_by_role("alert")).to_be_hidden()

    def degrade(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "degraded": "history_unavailable"})

    page.route("**/recommend", degrade, times=1)
    page.locator(".shopper").nth(1).click()
    expect(page.locator("#facts .degraded")).to_have_text("histories cannot be read")


@pytest.mark.slow
def test_it_says_so_when_the_service_dies_and_goes_on_when_it_is_back(
    open_page: OpenPage, own_service: Callable[..., Served]
) -> None:
    service = own_service()
    page = open_page(service.url)
    service.end()
    page.locator(".shopper").nth(1).click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(page.locator(CARDS)).to_have_count(24)
    page.get_by_role("searchbox").fill("number 57")
    expect(page.locator("#catalogue-empty")).to_contain_text("cannot be reached")
    service.begin()
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#facts")).to_contain_text("2 items of history")
    expect(page.locator("#catalogue-empty")).to_be_hidden()  # the search that failed is made again
    expect(page.locator("#catalogue .tile")).to_have_count(1)


def test_the_catalogue_waits_too_and_shows_what_was_searched(page: Any) -> None:
    page.route("**/items?**", refuse(503, "a reason", Retry_After="1"), times=1)
    page.get_by_role("searchbox").fill("number 57")
    expect(page.locator("#catalogue-empty")).to_contain_text("not ready. a reason")
    expect(page.locator("#catalogue .tile")).to_have_count(1)  # asked again by itself
    expect(page.locator("#catalogue-empty")).to_be_hidden()


@pytest.mark.slow
def test_a_key_is_requested_sent_and_stored_in_this_tab_alone(
    open_page: OpenPage, own_service: Callable[..., Served]
) -> None:
    service = own_service(VLM2REC_API_KEYS=KEY)
    page = open_page(service.url, wait=False)
    expect(page.get_by_role("alert")).to_contain_text("needs an API key")
    expect(page.locator("#columns")).to_be_hidden()
    page.get_by_role("button", name="Enter a key").click()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("needs an API key")
    page.get_by_role("button", name="Enter a key").click()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    page.locator(CARDS).first.wait_for()
    expect(page.locator("#history [data-item=i1] .picture.there img")).to_have_attribute("src", re.compile("^blob:"))
    page.locator("#request summary").click()
    assert KEY not in page.content()
    expect(page.locator("#curl")).to_contain_text("$VLM2REC_API_KEY")
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    page.reload()
    page.locator(CARDS).first.wait_for()  # the same tab still has it


@pytest.mark.slow
def test_pictures_of_the_page_for_those_who_look(open_page: OpenPage, served: Served) -> None:
    SHOTS.mkdir(exist_ok=True)
    wide, phone = {"width": 1440, "height": 1000}, {"width": 390, "height": 844}
    for name, profile in {
        "wide": {"viewport": wide},
        "wide-dark": {"viewport": wide, "color_scheme": "dark"},
        "phone": {"viewport": phone, "is_mobile": True, "has_touch": True},
        "phone-dark": {"viewport": phone, "is_mobile": True, "has_touch": True, "color_scheme": "dark"},
    }.items():
        page = open_page(served.url, **profile)
        page.locator("#history .picture.there").first.wait_for()
        assert len(page.screenshot(path=SHOTS / f"{name}.png")) > 20_000


def test_a_picture_of_any_shape_is_shown_whole(page: Any) -> None:
    image = page.locator(f"{CARDS} .picture.there img").first
    image.wait_for()
    assert image.evaluate("image => getComputedStyle(image).objectFit") == "contain"
