"""POST /recommend and POST /similar over HTTP: status, headers and body."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from service.api.response_models import RecommendAnswer


def post(client: TestClient, path: str, body: Any, status: int = 200) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_whole_answer(client: TestClient, bundle: Bundle, oracle: Any) -> None:
    sent = {
        "items": ["i1", {"item_id": "i2", "weight": 1.0}],
        "k": 2,
        "explain": True,
        "fields": ["title", "image", "tags"],
    }
    answer = client.post("/recommend", json=sent, headers={"X-Request-ID": "order 66"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "order 66"
    timing = answer.headers["server-timing"]
    stages = [part.split(";dur=")[0] for part in timing.split(", ")]
    found = ["filter", "queue", "encode", "search", "rank", "write", "total"]
    assert stages in (["parse", *found], ["parse", "history", *found])
    body = answer.json()
    RecommendAnswer.model_validate(body, extra="forbid")
    best = oracle.best(oracle.encoded(["i1", "i2"]), 2, {"i1", "i2"})
    assert {name: body[name] for name in body if name != "items"} == {
        "request_id": "order 66",
        "bundle": bundle.id,
        "strategy": "sequence",
        "degraded": None,
        "history_used": 2,
        "unknown_items": [],
    }
    for item, (item_id, score) in zip(body["items"], best, strict=True):
        assert set(item) == {"item_id", "score", "missing", "contributions", "nearest_history_item", "fields"}
        assert item["item_id"] == item_id
        assert item["score"] == pytest.approx(score, abs=1e-5)
        assert set(item["contributions"]) == {"text", "image", "behaviour"}
        assert sum(item["contributions"].values()) == pytest.approx(item["score"], abs=1e-5)
        assert item["nearest_history_item"] in {"i1", "i2"}
        row = oracle.row(item_id)
        assert item["fields"] == {
            "title": None if row == 5 else f"Item number {row}",
            "image": None if row % 7 == 0 else f"images/{row}.png",
            "tags": ["new"] * (row % 2) + ["sale"] * (row % 5 == 0),
        }


def test_only_what_was_asked_for_is_in_an_item(client: TestClient) -> None:
    body = post(client, "/recommend", {"items": ["i1"], "k": 3})
    assert [set(item) for item in body["items"]] == [{"item_id", "score", "missing"}] * 3
    body = post(client, "/recommend", {"user_id": "nobody", "k": 1, "explain": True, "fields": []})
    assert body["items"] == [
        {
            "item_id": "i3",
            "score": body["items"][0]["score"],
            "missing": {"text": "absent", "image": "absent", "behaviour": "cold"},
            "contributions": None,
            "nearest_history_item": None,
            "fields": {},
        }
    ]


def test_defaults(client: TestClient, oracle: Any) -> None:
    short = post(client, "/recommend", {"items": ["i1"]})
    spelled_out = {
        "items": ["i1"],
        "user_id": None,
        "k": 20,
        "offset": 0,
        "exclude": [],
        "exclude_seen": True,
        "history": "use",
        "unknown_items": "ignore",
        "slot_weights": {"text": 1, "image": 1.0, "behaviour": 1},
        "diversity": 0,
        "explain": False,
        "filter": {"must": [], "must_not": []},
        "fields": None,
        "deadline_ms": None,
    }
    long = post(client, "/recommend", spelled_out)
    assert short["items"] == long["items"]
    assert len(short["items"]) == 20


def test_a_user_with_a_history(client: TestClient, oracle: Any) -> None:
    post(client, "/events", {"events": [{"user_id": "anna", "item_id": item} for item in ("i10", "i11", "i12")]})
    body = post(client, "/recommend", {"user_id": "anna", "k": 5})
    history = ["i10", "i11", "i12"]
    assert [item["item_id"] for item in body["items"]] == [
        item for item, _ in oracle.best(oracle.encoded(history), 5, set(history))
    ]
    assert (body["strategy"], body["history_used"]) == ("sequence", 3)
    body = post(client, "/recommend", {"user_id": "anna", "items": ["i1"], "k": 5})
    assert body["history_used"] == 4


def test_an_ignored_history_is_not_even_excluded(client: TestClient, oracle: Any) -> None:
    post(client, "/events", {"user_id": "berta", "item_id": "i3"})
    body = post(client, "/recommend", {"user_id": "berta", "history": "ignore", "k": 3})
    assert body["strategy"] == "popular"
    assert [item["item_id"] for item in body["items"]] == [item for item, _ in oracle.popular(3)]
    body = post(client, "/recommend", {"user_id": "berta", "items": ["i1"], "history": "ignore", "k": 3})
    assert body["history_used"] == 1


@pytest.mark.parametrize("asks", [{"user_id": "a user that never was"}, {"items": []}, {"items": ["never heard of"]}])
def test_nothing_to_go_by_is_popular_with_shares(client: TestClient, oracle: Any, asks: dict[str, Any]) -> None:
    body = post(client, "/recommend", {**asks, "k": 4})
    assert body["strategy"] == "popular"
    assert body["degraded"] is None
    found = [(item["item_id"], item["score"]) for item in body["items"]]
    wanted = oracle.popular(4)
    assert [item for item, _ in found] == [item for item, _ in wanted]
    assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-6)
    assert body["unknown_items"] == [item for item in asks.get("items", []) if item == "never heard of"]


def test_unknown_items_refused(client: TestClient) -> None:
    problem = post(client, "/recommend", {"items": ["i1", "gone"], "unknown_items": "error"}, 422)
    assert problem["errors"] == [
        {"field": "items", "received": '"gone"', "rule": "must be in the bundle, as unknown_items is error"}
    ]


def test_ids_in_unicode_and_with_slashes(client: TestClient) -> None:
    body = post(client, "/recommend", {"items": ["👟", "ein Tee/grün"], "k": 1})
    assert (body["history_used"], body["unknown_items"]) == (2, [])
    found = {item["item_id"] for item in post(client, "/recommend", {"items": ["i1"], "k": 1000})["items"]}
    assert {"👟", "ein Tee/grün"} <= found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"slot_weights": {"sound": 1}},
            "slot_weights.sound must be one of the slots text, image, behaviour; received",
        ),
        (
            {"slot_weights": {"text": 0, "image": 0, "behaviour": 0}},
            'slot_weights must not all be 0; received {"text": 0.0, "image": 0.0, "behaviour": 0.0}',
        ),
        ({"fields": ["title", "colour"]}, "fields[1] must be one of the fields title, image, category, price, tags"),
        ({"filter": {"must": [{"field": "colour", "eq": 1}]}}, "unknown field 'colour'; the fields are title, image"),
        (
            {"filter": {"must": [{"field": "price", "eq": "cheap"}]}},
            "field 'price' compares with a number, got 'cheap'",
        ),
        (
            {"filter": {"must": [{"field": "price", "gt": 1e308}, {"field": "title", "gt": 3}]}},
            "field 'title' compares",
        ),
    ],
)
def test_what_only_the_bundle_can_refuse(client: TestClient, change: dict[str, Any], message: str) -> None:
    problem = post(client, "/recommend", {"items": ["i1"], **change}, 422)
    assert problem["type"] == "urn:vlm2rec:problem:rule-broken"
    assert problem["detail"].startswith(message)
    assert len(problem["errors"]) == 1


def test_filter_in_every_form(client: TestClient, oracle: Any) -> None:
    def found(*must: dict[str, Any], must_not: tuple[dict[str, Any], ...] = ()) -> set[int]:
        body = {"items": ["i1"], "k": 1000, "filter": {"must": list(must), "must_not": list(must_not)}}
        return {oracle.row(item["item_id"]) for item in post(client, "/recommend", body)["items"]}

    rows = set(range(60)) - {1, 3}
    assert found({"field": "category", "eq": "shoes"}) == {row for row in rows if row % 3 == 0}
    assert found({"field": "tags", "in": ["sale", "nothing"]}) == {row for row in rows if row % 5 == 0}
    assert found({"field": "price", "gte": 10.5, "lt": 12.5}) == {10, 11}
    assert found({"field": "price", "exists": False}) == {9}
    assert found(must_not=({"field": "price", "gt": 2},)) == {0, 9}
    assert found({"field": "image", "exists": True}, must_not=({"field": "category", "in": ["shoes", "hats"]},)) == {
        row for row in rows if row % 7 and row % 3 == 2
    }


def test_similar_to_one_item(client: TestClient, oracle: Any, bundle: Bundle) -> None:
    body = post(client, "/similar", {"item_id": "i8", "k": 5, "explain": True, "slot_weights": {"image": 2}})
    query = oracle.vectors[8] * [1] * 1
    query[6:10] *= 2
    best = oracle.best(query, 5, {"i8"})
    assert [item["item_id"] for item in body["items"]] == [item for item, _ in best]
    assert [item["score"] for item in body["items"]] == pytest.approx([score for _, score in best], abs=1e-5)
    assert {item["nearest_history_item"] for item in body["items"]} == {"i8"}
    assert (body["strategy"], body["history_used"], body["bundle"]) == ("similar", 1, bundle.id)


def test_similar_to_several_items(client: TestClient, oracle: Any) -> None:
    body = post(client, "/similar", {"items": ["i8", {"item_id": "i9", "weight": -0.5}, "gone"], "k": 5})
    best = oracle.best((oracle.vectors[8] - 0.5 * oracle.vectors[9]) / 1.5, 5, {"i8", "i9"})
    assert [item["item_id"] for item in body["items"]] == [item for item, _ in best]
    assert body["unknown_items"] == ["gone"]


def test_similar_to_an_item_that_is_not_there(client: TestClient, bundle: Bundle) -> None:
    problem = post(client, "/similar", {"item_id": "gone"}, 404)
    assert problem["type"] == "urn:vlm2rec:problem:unknown-item"
    assert problem["detail"] == f'item_id must be in bundle {bundle.id}; received "gone"'


def test_similar_to_an_item_without_a_slot_is_popular(client: TestClient) -> None:
    body = post(client, "/similar", {"item_id": "i3", "k": 2})
    assert body["strategy"] == "popular"
    assert [item["item_id"] for item in body["items"]] == ["i0", "i1"]


@pytest.mark.parametrize("unknown", ["user_id", "history", "exclude_seen"])
def test_similar_knows_no_user(client: TestClient, unknown: str) -> None:
    problem = post(client, "/similar", {"item_id": "i1", unknown: "use"}, 422)
    assert problem["errors"][0]["field"] == unknown
