"""The whole service on Milvus: swaps, rollbacks, hidden items, and a Milvus that is gone."""

import socket
from typing import Any

import pytest

from index.bundle.bundle import Bundle
from service.bundles import refusals
from service.errors import BundleRefused, RetrieverUnavailable, SettingsError
from service.retrieval.milvus.client import MilvusClient
from service.retrieval.milvus.collection_record import collection_of
from service.retrieval.milvus.push import PushOptions, push
from service.settings.load import load_settings
from tests.support.shops import AS_ADMIN, OpenClient, Shop, eventually, metric, serving
from tests.support.stores.milvus_server import MilvusServer


@pytest.fixture
def settings(server: MilvusServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a service that is patient with milvus-lite, and tries a bundle again at once."""
    monkeypatch.setattr(refusals, "RETRY_S", 0.1)
    return {"retriever": server.address, "retriever_timeout_ms": 20_000}


def put(client: MilvusClient, shop: Shop, *numbers: int) -> None:
    for number in numbers:
        push(Bundle.load(shop.path(shop.ids[number])), client, PushOptions(keep=3))


def ask(service: Any, **body: Any) -> dict[str, Any]:
    answer = service.post("/recommend", json={"items": ["i1", "i2"], "k": 5, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def items(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def refused(service: Any) -> dict[str, str]:
    return {kept["bundle"]: kept["reason"] for kept in service.get("/bundle").json()["swap"]["refused"]}


def test_answers_are_those_of_faiss(
    open_shop: OpenClient, shop: Shop, client: MilvusClient, settings: dict[str, Any]
) -> None:
    put(client, shop, 0)
    body = {"explain": True, "filter": {"must": [{"field": "category", "in": ["hats", "bags"]}]}}
    with open_shop() as here, open_shop(**settings) as there:
        for other in ({}, body, {"diversity": 0.5}, {"slot_weights": {"image": 3}}):
            expected, found = ask(here, **other), ask(there, **other)
            assert found["items"] == expected["items"]
            assert (found["strategy"], found["degraded"]) == ("sequence", None)
        assert metric(there, "vlm2rec_retriever_seconds_count") == 3  # few allowed rows are fetched by their numbers
        assert metric(there, "vlm2rec_retriever_fetch_seconds_count") == 2
        assert metric(there, "vlm2rec_retriever_vectors_total", source="milvus") > 2
        assert metric(there, "vlm2rec_retriever_vectors_total", source="cache") > 6
        assert metric(here, "vlm2rec_retriever_vectors_total", source="milvus") == 0
        assert metric(there, "vlm2rec_retriever_errors_total") == 0
        assert metric(here, "vlm2rec_retriever_seconds_count") == 0
        hidden = items(ask(there))[0]
        hiding = there.put(f"/items/{hidden}/availability", json={"available": False}, headers=AS_ADMIN)
        assert hiding.status_code == 204
        assert hidden not in items(ask(there))


def test_a_bundle_takes_over_when_its_collection_is_there(
    open_shop: OpenClient, shop: Shop, client: MilvusClient, settings: dict[str, Any]
) -> None:
    put(client, shop, 0)
    with open_shop(**settings) as service:
        shop.point(shop.ids[1])
        eventually(lambda: refused(service) == {shop.ids[1]: "retrieval"})
        assert serving(service) == shop.ids[0]
        put(client, shop, 1)
        eventually(lambda: serving(service) == shop.ids[1])
        assert refused(service) == {}
        back = service.post("/bundle/rollback", headers=AS_ADMIN, json={"bundle": shop.ids[0]})
        assert back.status_code == 200, back.text
        assert serving(service) == shop.ids[0]
        assert ask(service)["strategy"] == "sequence"
        gone = service.post("/bundle/rollback", headers=AS_ADMIN, json={"bundle": shop.ids[2]})
        assert gone.status_code == 409, gone.text
        assert serving(service) == shop.ids[0]


def test_without_milvus_popular_items_are_answered_until_it_is_back(
    open_shop: OpenClient, shop: Shop, client: MilvusClient, server: MilvusServer, settings: dict[str, Any]
) -> None:
    put(client, shop, 0)
    with open_shop(**settings) as service:
        before = ask(service)
        server.stop()
        for _ in range(5):
            answer = ask(service)
            assert (answer["strategy"], answer["degraded"]) == ("popular", "retrieval_unavailable")
            assert len(answer["items"]) == 5
        assert metric(service, "vlm2rec_retriever_breaker_state", state="open") == 1
        errors = metric(service, "vlm2rec_retriever_errors_total")
        assert errors > 0
        assert service.get("/readyz").status_code == 200
        assert metric(service, "vlm2rec_degraded_total", reason="retrieval_unavailable") == 5
        server.start()
        eventually(lambda: ask(service)["degraded"] is None)
        assert ask(service)["items"] == before["items"]
        assert metric(service, "vlm2rec_retriever_breaker_state", state="closed") == 1


def test_a_service_starts_without_milvus_and_a_swap_waits_for_it(
    open_shop: OpenClient, shop: Shop, client: MilvusClient, server: MilvusServer, settings: dict[str, Any]
) -> None:
    put(client, shop, 0, 1)
    server.stop()
    with open_shop(**{**settings, "retriever_timeout_ms": 2000}) as service:
        assert ask(service)["degraded"] == "retrieval_unavailable"
        shop.point(shop.ids[1])
        eventually(lambda: refused(service) == {shop.ids[1]: "retrieval"})
        assert serving(service) == shop.ids[0]
        server.start()
        eventually(lambda: serving(service) == shop.ids[1])
        eventually(lambda: ask(service)["strategy"] == "sequence")


def test_a_start_takes_the_newest_bundle_that_can_be_searched(
    open_shop: OpenClient, shop: Shop, client: MilvusClient, settings: dict[str, Any]
) -> None:
    with pytest.raises(BundleRefused, match=f"no checked collection {collection_of(shop.ids[0])}; push it"):
        open_shop(**settings).__enter__()
    put(client, shop, 0)
    client._call("release_collection", collection_name=collection_of(shop.ids[0]))
    with pytest.raises(BundleRefused, match="is not loaded"):
        open_shop(**settings).__enter__()


def test_a_milvus_that_never_answers_delays_few_requests(
    open_shop: OpenClient, shop: Shop, settings: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"milvus+http://127.0.0.1:{silent.getsockname()[1]}"
        with open_shop(**{**settings, "retriever": address, "retriever_timeout_ms": 300}) as service:
            for _ in range(30):
                answer = ask(service)
                assert (answer["strategy"], answer["degraded"]) == ("popular", "retrieval_unavailable")
            assert 1 <= metric(service, "vlm2rec_retriever_errors_total") < 30


def test_a_collection_that_was_deleted_costs_the_search_only(
    open_shop: OpenClient, shop: Shop, client: MilvusClient, settings: dict[str, Any]
) -> None:
    put(client, shop, 0)
    narrow = {"must": [{"field": "category", "eq": "hats"}]}
    with open_shop(**settings) as service, open_shop(**settings, retriever_cache_mb=0) as reading:
        before = ask(service, filter=narrow)
        client.drop(collection_of(shop.ids[0]))
        for other in (service, reading):
            assert ask(other)["degraded"] == "retrieval_unavailable"
        assert ask(service, filter=narrow) | {"request_id": ""} == before | {"request_id": ""}  # all are cached
        assert ask(service, items=["i5"], filter=narrow)["degraded"] == "retrieval_unavailable"
        assert ask(reading, items=["i5"], filter=narrow)["strategy"] == "sequence"  # read from the bundle


def test_histories_that_cannot_be_fetched_degrade_until_they_can(
    open_shop: OpenClient,
    shop: Shop,
    client: MilvusClient,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, down = MilvusClient.vectors, [False]

    def vectors(*arguments: Any) -> Any:
        if down[0]:
            raise RetrieverUnavailable("down")
        return whole(*arguments)

    monkeypatch.setattr(MilvusClient, "vectors", vectors)
    put(client, shop, 0)
    with open_shop(**settings) as service:
        before, down[0] = ask(service), True
        errors = metric(service, "vlm2rec_retriever_errors_total")
        for _ in range(3):
            answer = ask(service, items=["i5", "i6"])
            assert (answer["strategy"], answer["degraded"]) == ("popular", "retrieval_unavailable")
            similar = service.post("/similar", json={"items": ["i5"], "k": 5}).json()
            assert similar["degraded"] == "retrieval_unavailable"
        assert metric(service, "vlm2rec_retriever_errors_total") >= errors + 3
        assert metric(service, "vlm2rec_retriever_breaker_state", state="closed") == 0
        assert ask(service)["items"] == before["items"]  # cached, and searches are answered
        assert service.get("/readyz").status_code == 200
        down[0] = False
        eventually(lambda: ask(service, items=["i5", "i6"])["degraded"] is None)
        assert metric(service, "vlm2rec_retriever_breaker_state", state="closed") == 1


def test_no_file_of_vectors_is_read_to_answer(
    open_shop: OpenClient,
    shop: Shop,
    client: MilvusClient,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(client, shop, 0)
    body = {"explain": True, "diversity": 0.5, "slot_weights": {"image": 3}}
    with open_shop(**settings) as service:
        expected = ask(service, **body)

        def unread(*_: Any) -> Any:
            raise AssertionError("the file of the bundle was read")

        monkeypatch.setattr(Bundle, "vectors", unread)
        assert ask(service, **body)["items"] == expected["items"]
        similar = service.post("/similar", json={"items": ["i7"], "k": 5, "explain": True})
        assert (similar.status_code, similar.json()["degraded"]) == (200, None)


def test_milvus_needs_the_cpu(shop: Shop) -> None:
    with pytest.raises(SettingsError, match="device must be cpu with Milvus"):
        load_settings(registry=str(shop.registry.root), retriever="milvus+http://host", device="cuda")
