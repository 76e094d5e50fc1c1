"""Without consent nothing is stored of a user, and a stateless request leaves nothing behind."""

from collections.abc import Sequence
from typing import Any

import pytest
from redis import Redis
from starlette.testclient import TestClient

from service.errors import BulkPartlyStored
from service.stores.protocols import Event, OfUser
from tests.support.shops import metric


def kept(redis_url: str, prefix: str) -> list[str]:
    """Every value that Redis keeps under a prefix, and every key, as text."""
    found: list[str] = []
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        for key in redis.scan_iter(f"{prefix}*"):
            found.append(key)
            kind = redis.type(key)
            if kind == "list":
                found += redis.lrange(key, 0, -1)
            elif kind == "zset":
                found += redis.zrange(key, 0, -1)
            elif kind == "stream":
                found += [value for _, fields in redis.xrange(key) for value in fields.values()]
    return found


def post(client: TestClient, *events: dict[str, Any]) -> dict[str, int]:
    answer = client.post("/events", json={"events": events})
    assert answer.status_code == 200, answer.text
    counts: dict[str, int] = answer.json()
    return counts


def test_an_event_without_consent_is_counted_and_kept_in_no_form(open_client: Any, redis_url: str) -> None:
    with open_client(redis_prefix="test-consent") as client:
        counts = post(
            client,
            {"user_id": "anna", "item_id": "secret", "consent": False, "event_id": "s1", "request_id": "s2"},
            {"user_id": "anna", "item_id": "i1", "consent": True},
            {"user_id": "bert", "item_id": "i2"},
        )
        assert counts == {"stored": 2, "duplicates": 0, "without_consent": 1}
        assert client.post("/events", json={"user_id": "carl", "item_id": "secret", "consent": False}).json() == {
            "stored": 0,
            "duplicates": 0,
            "without_consent": 1,
        }
        assert [step["item_id"] for step in client.get("/users/anna/history").json()["items"]] == ["i1"]
        assert 'vlm2rec_events_total{outcome="without_consent"} 2.0' in client.get("/metrics").text
    everything = kept(redis_url, "test-consent")
    assert any("anna" in text for text in everything)
    assert not [text for text in everything if "secret" in text or "carl" in text or text in {"s1", "s2"}]


def test_what_a_partly_stored_bulk_holds_is_counted_but_for_what_is_sent_again(
    open_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def partly(_events: Sequence[Event], _of_user: OfUser) -> Sequence[int]:
        raise BulkPartlyStored("a node is away", stored=[0, 2], not_stored=[1], new=[0])

    with open_client() as client:
        monkeypatch.setattr(client.app.state.histories, "append", partly)
        bulk = [
            {"user_id": "anna", "item_id": "i1", "consent": False, "type": "strange"},
            {"user_id": "anna", "item_id": "i1", "type": "strange"},
            {"user_id": "bert", "item_id": "i1", "type": "strange"},
            {"user_id": "carl", "item_id": "i1"},
        ]
        problem = client.post("/events", json={"events": bulk}).json()
        assert (problem["stored"], problem["not_stored"]) == ([1, 3], [2])
        counted = {
            outcome: metric(client, "vlm2rec_events_total", outcome=outcome)
            for outcome in ("stored", "duplicate", "without_consent")
        }
        assert counted == {"stored": 1, "duplicate": 1, "without_consent": 1}
        assert metric(client, "vlm2rec_events_unknown_type_total") == 2


@pytest.mark.parametrize(("said", "stored"), [({}, 0), ({"consent": False}, 0), ({"consent": True}, 1)])
def test_where_consent_is_required_it_must_be_said(
    open_client: Any, redis_url: str, said: dict[str, bool], stored: int
) -> None:
    prefix = f"test-required-{stored}-{len(said)}"
    with open_client(require_consent=True, redis_prefix=prefix) as client:
        counts = post(client, {"user_id": "anna", "item_id": "i1"} | said)
        assert counts == {"stored": stored, "duplicates": 0, "without_consent": 1 - stored}
    assert bool([text for text in kept(redis_url, prefix) if "anna" in text]) == bool(stored)


def test_events_without_consent_are_held_to_the_rules_and_need_no_redis(open_client: Any) -> None:
    with open_client(redis_url="redis://127.0.0.1:1/0") as client:
        bad = [{"user_id": "u", "item_id": "i", "consent": False}, {"user_id": "", "item_id": "i", "consent": False}]
        assert client.post("/events", json={"events": bad}).json()["errors"][0]["field"] == "events[1].user_id"
        assert post(client, bad[0]) == {"stored": 0, "duplicates": 0, "without_consent": 1}
        assert client.post("/events", json=bad[0] | {"consent": True}).status_code == 503


@pytest.mark.parametrize(
    "request_body",
    [
        {"items": ["i1", "i2"]},
        {"user_id": "nobody", "items": ["i1", "i2"]},
        {"user_id": "known", "items": ["i1", "i2"], "history": "ignore"},
        {"user_id": "known", "history": "ignore"},
    ],
)
def test_a_stateless_request_leaves_nothing_behind(
    open_client: Any, redis_url: str, request_body: dict[str, Any]
) -> None:
    with open_client(redis_prefix="test-stateless") as client:
        post(client, {"user_id": "known", "item_id": "i7", "event_id": "e"})
        before = sorted(kept(redis_url, "test-stateless"))
        for path, body in (("/recommend", request_body), ("/recommend/batch", {"requests": [request_body]})):
            assert client.post(path, json=body).status_code == 200
        assert client.post("/similar", json={"items": ["i1", "i2"]}).status_code == 200
        assert sorted(kept(redis_url, "test-stateless")) == before
        assert recent_of(client) == []


def test_a_stateless_request_does_not_read_redis(open_client: Any) -> None:
    with open_client(redis_url="redis://127.0.0.1:1/0") as client:
        for request_body in ({"items": ["i1"]}, {"user_id": "u", "items": ["i1"], "history": "ignore"}):
            body = client.post("/recommend", json=request_body).json()
            assert (body["strategy"], body["degraded"]) == ("sequence", None)
        assert client.post("/recommend", json={"user_id": "u"}).json()["degraded"] == "history_unavailable"


def test_of_a_request_with_a_stored_history_only_that_history_is_compared_with(open_client: Any) -> None:
    with open_client() as client:
        post(client, {"user_id": "known", "item_id": "i7"})
        client.post("/recommend", json={"user_id": "known", "items": ["i1", "i2"]})
        assert recent_of(client) == [("i7",)]


def recent_of(client: TestClient) -> list[tuple[str, ...]]:
    return list(client.app.state.watcher._loaded._recent.newest())
