"""Every response to any body is documented: no 5xx, and a 200 obeys its request."""

import json
import string
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.api.response_models import RecommendAnswer

pytestmark = pytest.mark.no_cover

FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)

item_ids = st.one_of(st.sampled_from([f"i{row}" for row in range(60)]), st.text(max_size=8))
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-2, 30))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(string.printable, max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
scalars = st.one_of(
    st.text(max_size=10), numbers, st.booleans(), st.sampled_from(["shoes", "new", 5.5, "Item number 4"])
)
clauses = st.one_of(
    st.fixed_dictionaries(
        {"field": st.sampled_from(["title", "image", "category", "price", "tags", "colour"])},
        optional={
            "eq": scalars,
            "in": st.lists(scalars, max_size=3),
            "gt": scalars,
            "gte": scalars,
            "lt": scalars,
            "lte": scalars,
            "exists": st.booleans(),
        },
    ),
    anything,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "user_id": st.one_of(item_ids, anything),
        "items": st.one_of(
            st.lists(
                st.one_of(item_ids, st.fixed_dictionaries({"item_id": item_ids}, optional={"weight": numbers})),
                max_size=8,
            ),
            anything,
        ),
        "item_id": item_ids,
        "k": st.one_of(st.integers(-1, 1002), anything),
        "offset": st.one_of(st.integers(-1, 1002), anything),
        "filter": st.one_of(
            st.fixed_dictionaries(
                {}, optional={"must": st.lists(clauses, max_size=3), "must_not": st.lists(clauses, max_size=2)}
            ),
            anything,
        ),
        "exclude": st.one_of(st.lists(item_ids, max_size=5), anything),
        "exclude_seen": st.one_of(st.booleans(), anything),
        "slot_weights": st.one_of(
            st.dictionaries(st.sampled_from(["text", "image", "behaviour", "sound"]), numbers, max_size=3), anything
        ),
        "diversity": st.one_of(st.floats(0, 1), anything),
        "explain": st.sampled_from([False, True, "full"]),
        "fields": st.one_of(st.lists(st.sampled_from(["title", "price", "tags", "x"]), max_size=3), anything),
        "unknown_items": st.sampled_from(["ignore", "error", "what"]),
        "history": st.sampled_from(["use", "ignore", "what"]),
        "deadline_ms": st.one_of(st.floats(1, 1000), anything),
    },
)
plain_bodies = st.fixed_dictionaries(
    {"items": st.lists(st.sampled_from([f"i{row}" for row in range(60)]), max_size=8)},
    optional={
        "k": st.integers(1, 80),
        "offset": st.integers(0, 80),
        "exclude": st.lists(item_ids.filter(lambda text: text.isalnum()), max_size=5),
        "exclude_seen": st.one_of(st.booleans(), st.none()),
        "slot_weights": st.dictionaries(st.sampled_from(["text", "image"]), st.floats(0, 10), max_size=2),
        "diversity": st.floats(0, 1),
        "explain": st.just(True),
    },
)


def check_documented(client: TestClient, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {200, 400, 404, 422}, (answer.status_code, answer.text, body)
    assert answer.headers["x-request-id"]
    if answer.status_code == 200:
        return
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert len(answer.content) < 20_000


@FUZZ
@given(body=bodies)
def test_recommend_bodies(client: TestClient, body: Any) -> None:
    text = json.dumps(body).encode()
    check_documented(client, "/recommend", text)
    check_documented(client, "/similar", text)


@FUZZ
@given(
    body=st.one_of(
        st.fixed_dictionaries(
            {"user_id": item_ids, "item_id": item_ids},
            optional={"timestamp": numbers, "type": st.text(max_size=5), "event_id": st.text(max_size=5)},
        ),
        st.fixed_dictionaries({"events": st.one_of(anything, st.lists(anything, max_size=3))}),
        anything,
    )
)
def test_events(client: TestClient, body: Any) -> None:
    check_documented(client, "/events", json.dumps(body).encode())


@FUZZ
@given(body=st.binary(max_size=200))
def test_bytes(client: TestClient, body: bytes) -> None:
    for path in ("/recommend", "/similar", "/events"):
        check_documented(client, path, body)


@FUZZ
@given(path=st.text(max_size=20), query=st.text(max_size=10))
def test_paths(client: TestClient, path: str, query: str) -> None:
    from urllib.parse import quote

    for prefix in ("/items/", "/users/", "/"):
        answer = client.get(
            f"{prefix}{quote(path, safe='', errors='surrogatepass')}?{quote(query, errors='surrogatepass')}"
        )
        assert answer.status_code in {200, 404, 405, 422}


@FUZZ
@given(sent=plain_bodies)
def test_every_response_obeys_its_request(client: TestClient, sent: dict[str, Any]) -> None:
    answer = client.post("/recommend", json=sent)
    assert answer.status_code == 200
    body = answer.json()
    RecommendAnswer.model_validate(body, extra="forbid", strict=True)
    scores = [item["score"] for item in body["items"]]
    found = [item["item_id"] for item in body["items"]]
    assert len(found) <= sent.get("k", 20)
    assert len(set(found)) == len(found)
    assert not set(found) & set(sent.get("exclude", []))
    if sent.get("exclude_seen") is not False:  # what the bundle says otherwise is true
        assert not set(found) & set(sent["items"])
    if not sent.get("diversity"):
        assert scores == sorted(scores, reverse=True)
    if sent.get("explain") and body["strategy"] != "popular":
        for item in body["items"]:
            assert abs(sum(item["contributions"].values()) - item["score"]) <= 1e-5
            assert item["nearest_history_item"] in sent["items"]
