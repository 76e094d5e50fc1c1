"""Events, histories and their erasure over HTTP."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from tests.support.shops import OpenClient, metric


def history(client: TestClient, user: str) -> list[dict[str, Any]]:
    answer = client.get(f"/users/{quote(user, safe='')}/history")
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"user_id", "items"}
    assert answer.json()["user_id"] == user
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def test_one_event(client: TestClient) -> None:
    before = time.time()
    answer = client.post("/events", json={"user_id": "one", "item_id": "not in the bundle"})
    assert (answer.status_code, answer.json()) == (200, {"stored": 1, "duplicates": 0, "without_consent": 0})
    (step,) = history(client, "one")
    assert before - 0.001 <= step.pop("timestamp") <= time.time() + 0.001
    assert step == {"item_id": "not in the bundle", "type": None}


def test_many_events_by_timestamp_within_the_call(client: TestClient) -> None:
    events = [
        {"user_id": "many", "item_id": "i2", "timestamp": 200, "type": "view", "request_id": "r 1"},
        {"user_id": "many", "item_id": "i1", "timestamp": 100.5, "event_id": "e"},
    ]
    answer = client.post("/events", json={"events": events})
    assert (answer.status_code, answer.json()) == (200, {"stored": 2, "duplicates": 0, "without_consent": 0})
    assert history(client, "many") == [
        {"item_id": "i1", "timestamp": 100.5, "type": None},
        {"item_id": "i2", "timestamp": 200.0, "type": "view"},
    ]


def test_a_retry_is_stored_once(client: TestClient) -> None:
    body = {"events": [{"user_id": "retry", "item_id": "i1", "event_id": "e1"}, {"user_id": "retry", "item_id": "i2"}]}
    assert client.post("/events", json=body).json() == {"stored": 2, "duplicates": 0, "without_consent": 0}
    assert client.post("/events", json=body).json() == {"stored": 1, "duplicates": 1, "without_consent": 0}
    assert [step["item_id"] for step in history(client, "retry")] == ["i1", "i2", "i2"]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"user_id": "whole"}, "events[1].item_id"),
        ({"user_id": "whole", "item_id": "i1", "timestamp": "now"}, "events[1].timestamp"),
        ({"user_id": "whole", "item_id": "i1", "timestamp": -1}, "events[1].timestamp"),
        ({"user_id": "whole", "item_id": "i1", "type": "a\nb"}, "events[1].type"),
        ({"user_id": "whole", "item_id": "i1", "event_id": ""}, "events[1].event_id"),
        ({"user_id": "whole", "item_id": "i1", "consent": "yes"}, "events[1].consent"),
        ("i1", "events[1]"),
    ],
)
def test_one_bad_event_refuses_all_and_is_named(client: TestClient, bad: Any, field: str) -> None:
    answer = client.post("/events", json={"events": [{"user_id": "whole", "item_id": "i1"}, bad]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
    assert answer.json()["detail"].startswith(f"{field} ")
    assert history(client, "whole") == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"events": []}, "events"),
        ({"events": [{"user_id": "u", "item_id": "i"}] * 1001}, "events"),
        ({}, "user_id"),
        ([], "body"),
    ],
)
def test_too_few_and_too_many(client: TestClient, body: Any, field: str) -> None:
    answer = client.post("/events", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_a_thousand_at_once(client: TestClient) -> None:
    events = [{"user_id": f"crowd{number % 7}", "item_id": "i1", "event_id": str(number)} for number in range(1000)]
    assert client.post("/events", json={"events": events}).json() == {
        "stored": 1000,
        "duplicates": 0,
        "without_consent": 0,
    }
    assert len(history(client, "crowd0")) == 143


def test_a_second_large_bulk_is_refused_where_single_events_are_not(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand events take as long as 16 recommendations, and count as many."""
    storing, released = threading.Event(), threading.Event()
    event = {"user_id": "bulk", "item_id": "i1"}
    with open_client(queue_bound=32) as client, ThreadPoolExecutor(1) as threads:
        histories = client.app.state.histories  # type: ignore[attr-defined]
        append = histories.append

        async def held(events: Any, of_user: Any) -> Any:
            if len(events) == 1000:
                storing.set()
                while not released.is_set():
                    await asyncio.sleep(0.01)
            return await append(events, of_user)

        def stored(count: int) -> int:
            answer = client.post("/events", json={"events": [event] * count})
            assert answer.status_code == 200, answer.text
            return int(answer.json()["stored"])

        monkeypatch.setattr(histories, "append", held)
        first = threads.submit(stored, 1000)
        try:
            assert storing.wait(60)
            assert client.app.state.admission.in_progress == 15  # type: ignore[attr-defined]  # not counted by the server
            refused = client.post("/events", json={"events": [event] * 1000})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["type"] == "urn:vlm2rec:problem:queue-full"
            assert "a bulk of 1000 events" in refused.json()["detail"]
            assert client.post("/recommend/batch", json={"requests": [{"items": ["i1"]}] * 2}).status_code == 429
            assert metric(client, "vlm2rec_shed_total", reason="refused") == 2
            assert stored(64) == 64  # as long as one recommendation
            assert client.post("/events", json=event).status_code == 200
        finally:
            released.set()
        assert first.result() == 1000
        assert stored(1000) == 1000
        assert client.app.state.admission.in_progress == 0  # type: ignore[attr-defined]


def test_the_history_is_capped(open_client: Any) -> None:
    with open_client(history_cap=3) as client:
        events = [{"user_id": "u", "item_id": f"i{number}", "timestamp": number} for number in range(5)]
        client.post("/events", json={"events": events})
        assert [step["item_id"] for step in history(client, "u")] == ["i2", "i3", "i4"]


def test_erasing_a_user(client: TestClient) -> None:
    client.post("/events", json={"user_id": "gone", "item_id": "i1", "event_id": "e"})
    answer = client.delete("/users/gone")
    assert (answer.status_code, answer.content) == (204, b"")
    assert history(client, "gone") == []
    assert client.post("/recommend", json={"user_id": "gone"}).json()["strategy"] == "popular"
    assert client.post("/events", json={"user_id": "gone", "item_id": "i1", "event_id": "e"}).json()["stored"] == 1


def test_a_user_that_never_was(client: TestClient) -> None:
    assert history(client, "never was") == []
    assert client.delete("/users/never%20was").status_code == 204


@pytest.mark.parametrize("user", ["a/b", "a/history", "Zoë", "👟", "100%", "%2F", "a?b#c", "a" * 256, " "])
def test_ids_of_every_kind(client: TestClient, user: str) -> None:
    assert client.post("/events", json={"user_id": user, "item_id": user}).status_code == 200
    assert [step["item_id"] for step in history(client, user)] == [user]
    assert client.delete(f"/users/{quote(user, safe='')}").status_code == 204
    assert history(client, user) == []


@pytest.mark.parametrize("path", ["a%00b", "%ff", "a" * 257, "%C2%85", "%ED%A0%80"])
def test_ids_that_are_none(client: TestClient, path: str) -> None:
    for method, url in (("GET", f"/users/{path}/history"), ("DELETE", f"/users/{path}")):
        answer = client.request(method, url)
        assert answer.status_code == 422, (method, url)
        assert answer.json()["errors"][0]["field"] == "user_id"
