"""No small body costs seconds of work, and no long work runs in the event loop."""

import threading
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from index.errors import SearchError
from service.recommend import recommender


def refused(client: TestClient, body: Any, path: str = "/recommend") -> str:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert len(answer.content) < 5_000
    detail: str = answer.json()["detail"]
    return detail


def test_the_values_of_all_clauses_count_together(client: TestClient) -> None:
    clause = {"field": "title", "in": [f"v{number}" for number in range(500)]}
    allowed = {"must": [clause], "must_not": [clause]}
    assert client.post("/recommend", json={"items": ["i1"], "filter": allowed}).status_code == 200
    more = {"must": [clause, {"field": "title", "in": ["v"]}], "must_not": [clause]}
    detail = refused(client, {"items": ["i1"], "filter": more})
    assert "must have at most 1000 values of `in` in all, not 1001" in detail


@pytest.mark.parametrize(
    "body",
    [
        {"user_id": "u"} | {f"key {number}": 1 for number in range(20_000)},
        {"items": ["i1"], "slot_weights": {f"slot {number}": "x" for number in range(20_000)}},
        {"items": ["i1"], "filter": {f"key {number}": [] for number in range(20_000)}},
    ],
)
def test_ten_thousands_of_broken_rules_are_only_counted(client: TestClient, body: dict[str, Any]) -> None:
    detail = refused(client, body)
    assert detail == "body breaks 20000 rules, too many to tell; try a small part of it; received too much to show"


def test_two_hundred_broken_rules_are_reported(client: TestClient) -> None:
    answer = client.post("/recommend", json={f"key {number}": 1 for number in range(199)})
    assert answer.json()["detail"].startswith(
        "body must have user_id or items" if False else "key 0 is not a known field"
    )
    assert len(answer.json()["errors"]) == 20


def test_a_new_filter_over_many_items_leaves_the_event_loop_free(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    allowed = Bundle.allowed

    def recording(bundle: Bundle, *arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return allowed(bundle, *arguments)

    monkeypatch.setattr(Bundle, "allowed", recording)
    requests = [
        {"items": ["i1"], "k": 60, "filter": {"must": [{"field": "price", "gte": bound}]}} for bound in (20.25, 30.25)
    ]
    inline = [client.post("/recommend", json=request).json()["items"] for request in requests]
    loop = threads.pop()
    assert set(threads) == {loop}
    monkeypatch.setattr(recommender, "_INLINE_COMPARISONS", 59)  # of 60 items
    client.post("/recommend", json=requests[0])
    assert threads[-1] == loop  # kept from before
    fresh = {"items": ["i1"], "k": 60, "filter": {"must": [{"field": "price", "gte": 20.375}]}}
    for path in ("/recommend", "/similar"):
        fresh["filter"]["must"][0]["gte"] += 0.001  # type: ignore[index]
        found = client.post(path, json=fresh).json()["items"]
        assert threads[-1] != loop
        assert len(found) == len(inline[0])
    assert client.post("/recommend", json=fresh).status_code == 200
    assert threads[-1] == loop  # and kept by the thread


def test_the_fields_of_many_are_those_of_each(bundle: Bundle) -> None:
    rows = np.array([5, 0, 59, 5, 9])
    for names in (None, ["price", "tags"], ["tags", "nothing", "tags"], []):
        assert bundle.fields_of(rows, names) == [bundle.fields(row, names) for row in rows.tolist()]
    assert bundle.fields_of(np.array([], dtype=np.int64)) == []
    for outside in (-1, 60):
        with pytest.raises(SearchError, match=f"got {outside}"):
            bundle.fields_of(np.array([0, outside]))


def test_fields_come_with_their_own_items(client: TestClient, bundle: Bundle) -> None:
    body = {"items": ["i1", "i2"], "k": 30, "fields": ["title", "tags"]}
    for item in client.post("/recommend", json=body).json()["items"]:
        row = bundle.ids.row(item["item_id"])
        assert row is not None
        assert item["fields"] == bundle.fields(row, ["title", "tags"])


def test_a_cached_filter_is_recognised(bundle: Bundle) -> None:
    wanted = {"must": [{"field": "price", "gte": 41.125}]}
    available = np.ones(len(bundle), dtype=np.bool_)
    assert not bundle.has_cached_filter(wanted, available)
    bundle.allowed(wanted)
    assert bundle.has_cached_filter(wanted, available)
    assert bundle.has_cached_filter(wanted)
    assert not bundle.has_cached_filter({"must_not": wanted["must"]})
