"""Outcomes over HTTP: from an answer to `GET /outcomes`, off by default, and bad input."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from starlette.testclient import TestClient

from service.api import user_routes
from tests.support.shops import OpenClient, eventually, metric

ANNA = {"user_id": "anna", "items": ["i1", "i2"], "k": 5}


@pytest.fixture(scope="module")
def client(open_client: OpenClient) -> Iterator[TestClient]:
    with open_client(outcomes=True) as opened:
        yield opened


def counted(client: TestClient, by: str, value: str) -> dict[str, Any]:
    """The counts of one value; they are stored once a second."""

    def found() -> Any:
        answer = client.get("/outcomes", params={"by": by})
        assert answer.status_code == 200
        return [entry for entry in answer.json()["outcomes"] if entry["value"] == value]

    return eventually(found)[0]


def test_from_an_answer_to_its_outcomes(client: TestClient) -> None:
    answer = client.post("/recommend", json=ANNA).json()
    assert set(answer["items"][0]) == {"item_id", "score", "missing"}
    explained = client.post("/recommend", json={**ANNA, "explain": True, "user_id": "bob"}).json()["items"]
    slot = max(explained[1]["contributions"], key=explained[1]["contributions"].get)
    shared = {"user_id": "anna", "item_id": answer["items"][1]["item_id"], "request_id": answer["request_id"]}
    events = [{**shared, "type": "click"}, {**shared, "type": "click"}, {**shared, "type": "purchase", "value": 12.5}]
    assert client.post("/events", json={"events": [*events, {**shared, "user_id": "eve", "type": "click"}]}).is_success
    eventually(lambda: counted(client, "position", "2")["conversions"])
    for by, value, answers, shown in (
        ("position", "2", 0, 2), ("bundle", answer["bundle"], 2, 10), ("strategy", "sequence", 2, 10),
        ("arm", "none", 2, 10),
    ):  # fmt: skip
        entry = counted(client, by, value)
        assert (entry["answers"], entry["shown"], entry["clicks"], entry["conversions"], entry["revenue"]) == (
            answers, shown, 1, 1, 12.5,
        )  # fmt: skip
    assert counted(client, "slot", slot)["clicks"] == 1
    assert metric(client, "vlm2rec_outcomes_total", by="position", outcome="clicks", value="2") == 1
    assert metric(client, "vlm2rec_outcome_revenue_total", by="position", value="2") == 12.5
    assert metric(client, "vlm2rec_outcome_events_total", result="unattributed") == 1


PUBLISHER = """
[events]
default_type = "read"
[events.types]
read = 1
finished = 4
skipped = -1
shown = "impression"
[events.outcomes]
finished = "conversion"
"""


@pytest.mark.parametrize(
    ("kind", "measure"),
    [
        *((kind, "clicks") for kind in ("read", None, "view")),
        ("finished", "conversions"),
        *((kind, "impressions") for kind in ("shown", "impression")),
        *((kind, None) for kind in ("skipped", "of nobody", "cart")),
    ],
)
def test_types_of_the_table_are_outcomes(publisher: TestClient, kind: str | None, measure: str | None) -> None:
    """The click of the second item comes last: once it is counted, so is the event of the first one."""
    unattributed = metric(publisher, "vlm2rec_outcome_events_total", result="unattributed")
    answer = publisher.post("/recommend", json={**ANNA, "user_id": f"reader of {kind}"}).json()
    before, clicks = position_counts(publisher, "1"), position_counts(publisher, "2")["clicks"]
    first, second = (
        {"user_id": f"reader of {kind}", "item_id": item["item_id"], "request_id": answer["request_id"]}
        for item in answer["items"][:2]
    )
    events = [{**first, "type": kind}, {**second, "type": "click"}]
    assert publisher.post("/events", json={"events": events}).json()["stored"] == 2
    eventually(lambda: position_counts(publisher, "2")["clicks"] == clicks + 1)
    found = {name: value - before[name] for name, value in position_counts(publisher, "1").items()}
    assert found == {name: float(name == measure) for name in found}
    assert metric(publisher, "vlm2rec_outcome_events_total", result="unattributed") == unattributed


@pytest.fixture(scope="module")
def publisher(open_client: OpenClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    file = tmp_path_factory.mktemp("publisher") / "service.toml"
    file.write_text(PUBLISHER)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLM2REC_CONFIG", str(file))
        with open_client(outcomes=True) as opened:
            yield opened


def position_counts(client: TestClient, position: str) -> dict[str, float]:
    """What was counted for a position of answers."""
    return {
        name: metric(client, "vlm2rec_outcomes_total", by="position", outcome=name, value=position)
        for name in ("impressions", "clicks", "conversions")
    }


def test_erasing_a_user_reaches_the_answers(client: TestClient) -> None:
    client.post("/recommend", json={**ANNA, "user_id": "carl"})
    eventually(lambda: metric(client, "vlm2rec_outcome_answers_total", result="kept"))
    assert client.delete("/users/carl").status_code == 204


def test_answers_to_a_session_are_its_own_and_are_erased_with_its_user(open_client: OpenClient) -> None:
    def events(result: str) -> Any:
        return metric(client, "vlm2rec_outcome_events_total", result=result)

    with open_client(outcomes=True) as client:
        answer = client.post("/recommend", json={"session_id": "s1", "items": ["i1", "i2"], "k": 5}).json()
        shown = [{"session_id": "s1", "item_id": item["item_id"], "type": "click"} for item in answer["items"]]
        eventually(lambda: metric(client, "vlm2rec_outcome_answers_total", result="kept"))
        client.post("/events", json=shown[0])
        assert eventually(lambda: events("attributed")) == 1
        assert client.post("/users/emma/merge", json={"session_id": "s1"}).status_code == 200
        assert client.delete("/users/emma").status_code == 204
        client.post("/events", json=shown[1])
        assert eventually(lambda: events("unattributed")) == 1


@pytest.mark.parametrize(
    ("asked", "field", "rule"),
    [
        ({"by": "colour"}, "by", "must be 'position', 'bundle', 'arm', 'strategy' or 'slot'"),
        ({"from": "yesterday"}, "from", "must be a"),
        ({"from": 10, "to": 10}, "to", "must be after from, which is 10"),
        ({"from": 1_700_000_000}, "from", "must be at most 31 days ago without to; received 1700000000"),
        *(({"from": text}, "from", "must be a number, as in 20") for text in ("nan", "1_0", " 10", "+10", "１", "")),
        ({"from": 0, "to": 40 * 86_400}, "to", "must be at most 31 days after from"),
        ({"since": 1}, "since", "is not a known field"),
    ],
)
def test_a_bad_period_is_refused(client: TestClient, asked: dict[str, Any], field: str, rule: str) -> None:
    answer = client.get("/outcomes", params=asked)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert rule in answer.json()["detail"]
    assert len(answer.json()["errors"]) == 1


@pytest.mark.parametrize("value", ["1e400", "NaN", "-1", "1000000001", '"12"'])
def test_a_value_is_finite_and_bounded(client: TestClient, value: str) -> None:
    body = f'{{"user_id": "u", "item_id": "i1", "type": "purchase", "value": {value}}}'
    answer = client.post("/events", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.status_code == 400 or answer.json()["errors"][0]["field"] == "value"


def test_off_nothing_is_kept_and_the_route_says_so(open_client: OpenClient) -> None:
    with open_client() as client:
        client.post("/recommend", json=ANNA)
        answer = client.get("/outcomes")
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:vlm2rec:problem:conflict")
        assert "VLM2REC_OUTCOMES=true" in answer.json()["detail"]
        assert "vlm2rec_outcome_answers_total{" not in client.get("/metrics").text


def test_a_redis_that_is_gone_costs_no_answer(open_client: OpenClient) -> None:
    with open_client(outcomes=True, redis_url="redis://127.0.0.1:1", redis_timeout_ms=50) as client:
        assert client.post("/recommend", json=ANNA).json()["degraded"] == "history_unavailable"
        eventually(lambda: metric(client, "vlm2rec_outcome_answers_total", result="failed"))
        answer = client.get("/outcomes")
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:vlm2rec:problem:outcomes-unavailable")


def test_an_answer_that_may_store_nothing_of_its_user_is_kept_without_the_user(open_client: OpenClient) -> None:
    with open_client(outcomes=True) as client:
        answer = client.post("/recommend", json={**ANNA, "history": "ignore"}).json()
        item = answer["items"][0]["item_id"]
        client.post("/events", json={"user_id": "anna", "item_id": item, "type": "click"})
        assert eventually(lambda: metric(client, "vlm2rec_outcome_events_total", result="unattributed")) == 1
        named = {"user_id": "anna", "item_id": item, "type": "click", "request_id": answer["request_id"]}
        client.post("/events", json=named)
        assert eventually(lambda: metric(client, "vlm2rec_outcome_events_total", result="attributed")) == 1


def test_the_newest_answer_with_the_item_counts(client: TestClient) -> None:
    before = time.time()
    first = client.post("/recommend", json={"user_id": "dora", "items": ["i1"], "k": 3}).json()
    client.post("/events", json={"user_id": "dora", "item_id": first["items"][2]["item_id"], "type": "view"})
    period = {"from": before, "to": before + 1, "by": "position"}

    def clicks() -> int:
        entries = client.get("/outcomes", params=period).json()["outcomes"]
        return next((entry["clicks"] for entry in entries if entry["value"] == "3"), 0)  # none is counted at first

    assert eventually(clicks) == 1


@pytest.mark.parametrize(("given", "result"), [({}, "attributed"), ({"timestamp": 1.0}, "unattributed")])
def test_an_event_without_a_time_follows_answers_of_replicas_whose_clock_is_ahead(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], result: str
) -> None:
    """It has arrived after them, whatever the clocks say; a time that the client sends is compared."""
    now = time.time()
    monkeypatch.setattr(user_routes, "time", lambda: now - 300)
    with open_client(outcomes=True) as client:
        item = client.post("/recommend", json=ANNA).json()["items"][0]["item_id"]
        event = {"user_id": "anna", "item_id": item, "type": "click", **given}
        assert client.post("/events", json=event).json()["stored"] == 1
        eventually(lambda: metric(client, "vlm2rec_outcome_events_total", result=result) == 1)


@pytest.mark.parametrize("named", [False, True])
def test_an_event_that_is_sent_again_counts_for_no_later_answer(open_client: OpenClient, named: bool) -> None:
    def events(result: str) -> float:
        return metric(client, "vlm2rec_outcome_events_total", result=result)

    with open_client(outcomes=True) as client:
        asked = {**ANNA, "exclude_seen": False}
        answer = client.post("/recommend", json=asked).json()
        click = {"user_id": "anna", "item_id": answer["items"][0]["item_id"], "type": "click", "event_id": "e1"}
        click |= {"request_id": answer["request_id"]} if named else {}
        client.post("/events", json=click)
        assert eventually(lambda: events("attributed")) == 1
        later = client.post("/recommend", json=asked).json()
        assert click["item_id"] in [item["item_id"] for item in later["items"]]
        eventually(lambda: metric(client, "vlm2rec_outcome_answers_total", result="kept") == 2)
        other = {"user_id": "anna", "item_id": "never shown", "type": "click"}
        sent = client.post("/events", json={"events": [click, other]})
        assert sent.json() == {"stored": 1, "duplicates": 1, "without_consent": 0}
        eventually(lambda: events("unattributed") == 1)
        assert (events("attributed"), events("duplicate")) == (1, float(named))


def test_a_bulk_costs_one_call_to_store_it_and_one_to_attribute_it(client: TestClient, redis_url: str) -> None:
    """Besides, the counts of every second are stored by one call; a call for each event would be a hundred."""

    def scripts() -> int:
        with redis.Redis.from_url(redis_url) as direct:
            return int(direct.info("commandstats")["cmdstat_evalsha"]["calls"])

    def noted(result: str) -> float:
        return metric(client, "vlm2rec_outcome_events_total", result=result)

    answer = client.post("/recommend", json={**ANNA, "user_id": "fred"}).json()
    named = {"user_id": "fred", "request_id": answer["request_id"], "type": "click"}
    client.post("/events", json={**named, "item_id": answer["items"][0]["item_id"]})
    eventually(lambda: noted("attributed"))
    attributed, unattributed, before = noted("attributed"), noted("unattributed"), scripts()
    shown = [{**named, "item_id": item["item_id"]} for item in answer["items"][1:]]
    others = [{"user_id": f"stranger-{number}", "item_id": "i1", "type": "view"} for number in range(96)]
    assert client.post("/events", json={"events": [*shown, *others]}).json()["stored"] == 100
    eventually(lambda: noted("unattributed") == unattributed + 96)
    assert noted("attributed") == attributed + 4
    assert 2 <= scripts() - before < 20
