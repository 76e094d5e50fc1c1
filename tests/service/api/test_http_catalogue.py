"""Items, the bundle, health, metrics and the documentation over HTTP."""

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from service.api.requests import request_models
from tests.support.shops import ADMIN, AS_ADMIN, OpenClient


def test_one_item(client: TestClient, oracle: Any) -> None:
    answer = client.get("/items/i7")
    assert answer.status_code == 200
    assert answer.json() == {
        "item_id": "i7",
        "fields": {"title": "Item number 7", "image": None, "category": "hats", "price": 7.5, "tags": ["new"]},
        "slots": ["text", "behaviour"],
        "missing": {"image": "absent"},
        "imputed": False,
        "picture": False,
        "available": True,
        "popularity": pytest.approx(53 / oracle.table.popularity.sum()),
    }
    assert client.get("/items/i3").json()["slots"] == []
    assert client.get("/items/i3").json()["missing"] == {"text": "absent", "image": "absent", "behaviour": "cold"}
    assert client.get("/items/i1").json()["missing"] == {}


@pytest.mark.parametrize("item", ["ein Tee/grün", "👟"])
def test_an_item_of_an_odd_name(client: TestClient, item: str) -> None:
    assert client.get(f"/items/{quote(item, safe='')}").json()["item_id"] == item


@pytest.mark.parametrize("path", ["gone", "%00", "%ff", "a" * 300, "%69%31%2F"])
def test_an_item_that_is_not_there(client: TestClient, path: str, bundle: Bundle) -> None:
    answer = client.get(f"/items/{path}")
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:vlm2rec:problem:unknown-item"
    assert answer.json()["detail"].startswith(f"item_id must be in bundle {bundle.id}; received ")


@pytest.mark.parametrize("path", ["%ff", "%C3", "%ED%A0%80"])
def test_a_path_that_is_not_utf_8_means_no_item(
    open_client: OpenClient, small_table: ItemTable, small_encoder: Path, tmp_path: Path, path: str
) -> None:
    """Decoded leniently it was the id of another item, which could be shown, and hidden."""
    names = ["\ufffd", "\ufffd\ufffd\ufffd", *(f"i{row}" for row in range(2, len(small_table)))]
    table = dataclasses.replace(small_table, ids=ItemIds(names))
    queries = EvaluationQueries(np.array([[2, 4]]), np.array([5]))
    odd = Bundle.load(build_bundle(table, small_encoder, queries, tmp_path))
    with open_client(admin_keys=[ADMIN]) as client:
        client.app.state.active_bundle.swap(odd)  # type: ignore[attr-defined]  # an application of FastAPI
        assert client.get(f"/items/{quote(names[0])}").json()["item_id"] == names[0]
        for answer in (
            client.get(f"/items/{path}"),
            client.get(f"/items/{path}/image"),
            client.put(f"/items/{path}/availability", json={"available": False}, headers=AS_ADMIN),
        ):
            assert answer.status_code == 404
            assert answer.json()["detail"].endswith(f'received "{path}", which is no UTF-8')


def test_of_a_repeated_parameter_the_last_counts(client: TestClient) -> None:
    assert len(client.get("/items?limit=1&limit=3").json()["items"]) == 3


def test_the_catalogue_page_by_page(client: TestClient, bundle: Bundle) -> None:
    seen: list[str] = []
    cursor: str | None = "0"
    while cursor is not None:
        page = client.get("/items", params={"limit": 25, "cursor": cursor}).json()
        assert page["bundle"] == bundle.id
        seen += [item["item_id"] for item in page["items"]]
        cursor = page["next"]
    assert seen == [bundle.ids.id(row) for row in range(60)]
    assert client.get("/items?cursor=60").json()["items"] == []
    assert client.get("/items?cursor=900719925474099").json() == {"bundle": bundle.id, "items": [], "next": None}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=1001", "limit"),
        *((f"limit={sent}", "limit") for sent in ("1_0", "%2010", "10%20", "%2B10", "+10", "10.0", "1e1", "-", "")),
        ("limit=%EF%BC%91%EF%BC%90", "limit"),
        ("cursor=-1", "cursor"),
        ("cursor=", "cursor"),
        ("cursor=1.x", "cursor"),
        ("cursor=1.20261123T040501Z-4f3a9c.", "cursor"),
        ("cursor=1%0A", "cursor"),
        ("cursor=%D9%A1", "cursor"),
        ("query=shoe", "query"),
    ],
)
def test_a_bad_page(client: TestClient, query: str, field: str) -> None:
    answer = client.get(f"/items?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_the_bundle(client: TestClient, bundle: Bundle, small_bundle: Path) -> None:
    body = client.get("/bundle").json()
    assert 0 <= body["swap"].pop("last_look_seconds") < 60
    body["swap"].pop("verified")  # by a thread beside, at some moment
    assert body.pop("swap") == {
        "pin": None,
        "wanted": None,
        "loading": None,
        "previous": None,
        "comparison": None,
        "refused": [],
    }
    assert 0 <= body.pop("age_seconds") < 3600
    assert body == {
        "bundle": bundle.id,
        "items": 60,
        "slots": {"text": 6, "image": 4, "behaviour": 2},
        "max_history": 5,
        "licences": [],
        "warnings": [],
        "manifest": {"exclude_seen": True, **json.loads((small_bundle / "manifest.json").read_text())},
        "report": json.loads((small_bundle / "report.json").read_text()),
    }


def test_health(client: TestClient, bundle: Bundle) -> None:
    assert client.get("/livez").json() == {"status": "up"}
    assert client.get("/readyz").json() == {"status": "ready", "bundle": bundle.id, "redis": "up"}


def test_a_process_that_drains_refuses_new_work(open_client: Any) -> None:
    with open_client(retry_after_s=7) as client:
        client.app.state.active_bundle.drain()
        for answer in (client.post("/recommend", json={"items": ["i1"]}), client.get("/readyz"), client.get("/bundle")):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "7"
            assert answer.json()["type"] == "urn:vlm2rec:problem:not-ready"
            assert answer.json()["detail"] == "this process is ending; ask another replica"
        assert client.get("/livez").status_code == 200
        assert client.get("/metrics").status_code == 200


def samples(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics_count_what_happened(open_client: Any, bundle: Bundle) -> None:
    with open_client() as client:
        client.post("/recommend", json={"items": ["i1", "gone", "i2"]})
        client.post("/recommend", json={"user_id": "nobody"})
        client.post("/recommend", json={"k": 0})
        client.post("/similar", json={"item_id": "i1"})
        client.post("/events", json={"user_id": "u", "item_id": "i1", "event_id": "e"})
        client.post("/events", json={"user_id": "u", "item_id": "i1", "event_id": "e"})
        client.get("/items/i1")
        client.get("/items/i2")
        client.get("/nowhere/at/all")
        client.request("BREW", "/livez")
        found = samples(client)

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert value("vlm2rec_requests_total", route="/recommend", method="POST", status="200") == 2
    assert value("vlm2rec_requests_total", route="/recommend", method="POST", status="422") == 1
    assert value("vlm2rec_requests_total", route="/items/{item_id}", method="GET", status="200") == 2
    assert value("vlm2rec_requests_total", route="unmatched", method="GET", status="404") == 1
    assert value("vlm2rec_requests_total", route="/livez", method="other", status="405") == 1
    assert value("vlm2rec_request_seconds_count", route="/recommend") == 3
    assert value("vlm2rec_stage_seconds_count", route="/recommend", stage="encode") == 1
    assert value("vlm2rec_answers_total", strategy="sequence") == 1
    assert value("vlm2rec_answers_total", strategy="popular") == 1
    assert value("vlm2rec_answers_total", strategy="similar") == 1
    assert value("vlm2rec_fallbacks_total", strategy="popular", reason="no_history") == 1
    assert len([labels for name, labels in found if name == "vlm2rec_fallbacks_total"]) == 1
    assert value("vlm2rec_unknown_items_total") == 1
    assert value("vlm2rec_history_length_sum") == 3
    assert value("vlm2rec_events_total", outcome="stored") == 1
    assert value("vlm2rec_events_total", outcome="duplicate") == 1
    assert value("vlm2rec_bundle_info", bundle=bundle.id) == 1
    assert value("vlm2rec_bundle_items") == 60
    assert value("vlm2rec_bundle_age_seconds") > 0
    assert value("process_open_fds") > 0


def test_the_document_describes_every_route_and_every_problem(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["info"]["version"] == version("vlm2rec")
    assert {path: sorted(operations) for path, operations in document["paths"].items()} == {
        "/recommend": ["post"],
        "/recommend/batch": ["post"],
        "/similar": ["post"],
        "/events": ["post"],
        "/users/{user_id}/history": ["get"],
        "/users/{user_id}/impressions": ["get"],
        "/users/{user_id}/merge": ["post"],
        "/users/{user_id}/profile": ["get"],
        "/users/samples": ["get"],
        "/users/{user_id}": ["delete"],
        "/outcomes": ["get"],
        "/experiments/{name}": ["delete", "get", "put"],
        "/experiments/{name}/groups": ["get"],
        "/audit": ["get"],
        "/items": ["get"],
        "/items/{item_id}": ["get"],
        "/items/{item_id}/image": ["get"],
        "/items/{item_id}/availability": ["put"],
        "/bundle": ["get"],
        "/bundle/reload": ["post"],
        "/bundle/rollback": ["post"],
        "/livez": ["get"],
        "/readyz": ["get"],
    }
    recommend = document["paths"]["/recommend"]["post"]
    statuses = "200 400 401 403 405 408 413 415 422 429 431 500 501 503"
    assert sorted(recommend["responses"]) == statuses.split()
    schema = recommend["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/RecommendRequest"}
    assert recommend["responses"]["422"]["content"]["application/problem+json"]["schema"]["$ref"].endswith("/Problem")
    schemas_named = document["components"]["schemas"]
    assert set(schemas_named["RecommendRequest"]["properties"]) == set(request_models.RecommendRequest.model_fields)
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in schemas_named
    clause = schemas_named["Clause"]["properties"]
    assert set(clause) == {"field", "eq", "in", "gt", "gte", "lt", "lte", "exists"}


def test_the_pages_for_people(client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert "swagger" in answer.text
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("query", ["q=%FF", "q=%ED%A0%80", "limit=1&q=a%C3"])
def test_a_query_that_is_not_utf_8_is_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/items?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"field": "query", "received": f'"{query}"', "rule": "must be percent-encoded UTF-8"}
    ]
    assert client.get("/items?q=%C3%A9").status_code == 200
