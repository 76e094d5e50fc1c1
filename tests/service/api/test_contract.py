"""The HTTP contract of every route, and of request ids."""

import re
from typing import Any

import pytest
from redis import Redis
from starlette.testclient import TestClient

from service.api.requests import request_models
from service.stores.history_keys import keys_of

EVERY = [
    ("POST", "/recommend", {"items": ["i1"]}),
    ("POST", "/recommend/batch", {"requests": [{"items": ["i1"]}, {}]}),
    ("POST", "/similar", {"item_id": "i1"}),
    ("POST", "/events", {"user_id": "c", "item_id": "i1"}),
    ("GET", "/users/c/history", None),
    ("GET", "/users/c/profile", None),
    ("GET", "/users/c/impressions", None),
    ("POST", "/users/c/merge", {"session_id": "s"}),
    ("GET", "/users/samples", None),
    ("DELETE", "/users/c", None),
    ("GET", "/items?q=1", None),
    ("GET", "/items/i1", None),
    ("GET", "/items/i1/image", None),
    ("PUT", "/items/i1/availability", {"available": True}),
    ("GET", "/bundle", None),
    ("POST", "/bundle/reload", None),
    ("POST", "/bundle/rollback", {}),
    ("GET", "/outcomes?by=slot", None),
    ("PUT", "/experiments/e", {"arms": []}),
    ("GET", "/experiments/e", None),
    ("GET", "/experiments/e/groups", None),
    ("DELETE", "/experiments/e", None),
    ("GET", "/audit", None),
    ("GET", "/livez", None),
    ("GET", "/readyz", None),
    ("GET", "/metrics", None),
    ("GET", "/openapi.json", None),
    ("GET", "/docs", None),
    ("GET", "/", None),
    ("GET", "/nowhere", None),
    ("PUT", "/recommend", {}),
    ("POST", "/recommend", {"k": 0}),
    ("POST", "/events", []),
]


@pytest.mark.parametrize(("method", "path", "body"), EVERY)
def test_every_answer_has_its_request_id_and_timing(client: TestClient, method: str, path: str, body: Any) -> None:
    answer = client.request(method, path, json=body, headers={"X-Request-ID": "join me"}, follow_redirects=False)
    assert answer.headers["x-request-id"] == "join me"
    assert re.search(r"(^|, )total;dur=\d+\.\d{3}$", answer.headers["server-timing"])
    made = client.request(method, path, json=body, follow_redirects=False).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    if answer.headers.get("content-type") == "application/problem+json":
        assert answer.json()["request_id"] == "join me"


def test_every_documented_route_is_in_the_list_above(client: TestClient) -> None:
    listed = {(method, re.sub(r"\?.*", "", path)) for method, path, _ in EVERY}
    listed = {(method, re.sub("/c(?=/|$)", "/{user_id}", path)) for method, path in listed}
    listed = {(method, re.sub("/i1(?=/|$)", "/{item_id}", path)) for method, path in listed}
    listed = {(method, re.sub("/e(?=/|$)", "/{name}", path)) for method, path in listed}
    paths = client.get("/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, found in paths.items() for method in found} <= listed


def test_the_id_of_an_answer_travels_with_its_events_to_the_stream(open_client: Any, redis_url: str) -> None:
    with open_client(redis_prefix="test-join") as client:
        answer = client.post("/recommend", json={"items": ["i1"], "k": 1})
        batch = client.post("/recommend/batch", json={"requests": [{"items": ["i1"]}]}, headers={"X-Request-ID": "~ 1"})
        ids = [answer.json()["request_id"], batch.json()["answers"][0]["request_id"], "x" * 128]
        assert ids[:2] == [answer.headers["x-request-id"], "~ 1"]
        events = [
            {"user_id": "u", "item_id": f"i{at}", "timestamp": at, "request_id": id_} for at, id_ in enumerate(ids)
        ]
        assert client.post("/events", json={"events": events}).json()["stored"] == 3
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        stream = [fields for _, fields in redis.xrange(keys_of("test-join", "u").stream)]
    assert [(fields["item_id"], fields["request_id"]) for fields in stream] == [
        ("i0", ids[0]),
        ("i1", ids[1]),
        ("i2", ids[2]),
    ]


@pytest.mark.parametrize("given", ["a", "x" * 128, "with spaces inside", "~!@#"])
def test_a_request_id_of_up_to_128_printable_characters_is_returned(client: TestClient, given: str) -> None:
    assert client.get("/livez", headers={"X-Request-ID": given}).headers["x-request-id"] == given


RULES: list[tuple[dict[str, Any], bool]] = [
    ({"k": 1}, True),
    ({"k": 1000}, True),
    ({"k": 1001}, False),
    ({"k": 500, "offset": 500}, True),
    ({"k": 500, "offset": 501}, False),
    ({"offset": -1}, False),
    ({"items": ["i1"] * 500}, True),
    ({"items": ["i1"] * 501}, False),
    ({"items": ["x" * 256]}, True),
    ({"items": ["é" * 128]}, True),
    ({"items": ["é" * 129]}, False),
    ({"items": [""]}, False),
    ({"items": ["a\u0085"]}, False),
    ({"items": [{"item_id": "i1", "weight": 10}]}, True),
    ({"items": [{"item_id": "i1", "weight": -10}]}, True),
    ({"items": [{"item_id": "i1", "weight": 10.01}]}, False),
    ({"items": [{"item_id": "i1", "weight": 1, "more": 1}]}, False),
    ({"exclude": ["i1"] * 1000}, True),
    ({"exclude": ["i1"] * 1001}, False),
    ({"slot_weights": {"text": 0, "image": 10}}, True),
    ({"slot_weights": {"text": -0.1}}, False),
    ({"slot_weights": {"text": 10.1}}, False),
    ({"slot_weights": {"text": 0, "image": 0, "behaviour": 0}}, False),
    ({"slot_weights": {"sound": 1}}, False),
    ({"diversity": 1}, True),
    ({"diversity": 1.01}, False),
    ({"filter": {"must": [{"field": "price", "gt": 1}] * 16, "must_not": [{"field": "price", "lt": 1}] * 16}}, True),
    ({"filter": {"must": [{"field": "price", "gt": 1}] * 17, "must_not": [{"field": "price", "lt": 1}] * 16}}, False),
    ({"filter": {"must": [{"field": "price", "gt": 1, "gte": 1}]}}, False),
    ({"filter": {"must": [{"field": "price"}]}}, False),
    ({"filter": {"must": [{"field": "price", "eq": 1, "exists": True}]}}, False),
    ({"filter": {"must": [{"field": "tags", "eq": "sale"}]}}, True),
    ({"filter": {"should": []}}, False),
    ({"unknown_items": "error"}, True),
    ({"items": ["gone"], "unknown_items": "error"}, False),
    ({"history": "ignore"}, True),
    ({"history": "forget"}, False),
    ({"deadline_ms": 50}, True),
    ({"explain": "yes"}, False),
    ({"debug": True}, False),
]


@pytest.mark.parametrize(("change", "taken"), RULES)
def test_bounds_alone_and_as_member_of_a_batch(client: TestClient, change: dict[str, Any], taken: bool) -> None:
    body = {"items": ["i1"]} | change
    assert client.post("/recommend", json=body).status_code == (200 if taken else 422)
    (member,) = client.post("/recommend/batch", json={"requests": [body]}).json()["answers"]
    assert ("problem" not in member) == taken


def test_defaults_are_those_of_the_contract() -> None:
    defaults = request_models.RecommendRequest(items=["i1"])
    assert (defaults.k, defaults.offset, defaults.exclude_seen, defaults.history, defaults.unknown_items) == (
        20,
        0,
        None,
        "use",
        "ignore",
    )
    assert (defaults.diversity, defaults.slot_weights, defaults.deadline_ms, defaults.explain, defaults.fields) == (
        0,
        None,
        None,
        False,
        None,
    )


def test_null_matches_only_what_does_not_exist(client: TestClient) -> None:
    def found(*must: dict[str, Any]) -> set[str]:
        body = {"items": ["i1"], "k": 1000, "filter": {"must": must}}
        return {item["item_id"] for item in client.post("/recommend", json=body).json()["items"]}

    assert found({"field": "price", "exists": False}) == {"i9"}
    for clause in ({"lt": 1e9}, {"gt": -1e9}, {"in": [9.5]}, {"eq": 9.5}, {"exists": True}):
        assert "i9" not in found({"field": "price", **clause})
