"""New items over HTTP: the mark of imputed behaviour vectors, the places kept, and what is counted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from index.items.item_table import ItemTable
from service.api.response_models import ItemAnswer, RecommendAnswer
from service.bundles.metrics import count_missing
from tests.support.listed_bundles import bundle_with_new_items
from tests.support.shops import metric

NEW = [6, 13, 20, 27, 34, 41]
COLD = {"behaviour": "cold"}


@pytest.fixture(scope="module")
def cold_bundle(small_table: ItemTable, small_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Six new items, and `i3` without any slot, in a bundle that keeps a fifth of the places."""
    out = tmp_path_factory.mktemp("cold")
    return Bundle.load(bundle_with_new_items(small_table, small_encoder, out, NEW, fresh_share=0.2))


@pytest.fixture(scope="module")
def cold_client(open_client: Any, cold_bundle: Bundle) -> Iterator[TestClient]:
    with open_client() as client:
        client.app.state.active_bundle.swap(cold_bundle)
        client.app.state.metrics.bundles.activated(cold_bundle, count_missing(cold_bundle))
        yield client


def post(client: TestClient, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    RecommendAnswer.model_validate(answer.json(), extra="forbid")
    return answer.json()["items"]


@pytest.mark.parametrize("explain", [False, True, "full"])
def test_imputed_items_are_marked_and_still_called_cold(cold_client: TestClient, explain: Any) -> None:
    for path, sent in (
        ("/recommend", {"items": ["i10"]}),
        ("/similar", {"item_id": "i10"}),
        ("/recommend", {"user_id": "x"}),
    ):
        items = post(cold_client, path, k=60, explain=explain, **sent)
        assert {item["item_id"] for item in items if "imputed" in item} == {f"i{row}" for row in NEW}
        for item in items:
            if "imputed" in item:
                assert item["imputed"] is True
                assert item["missing"]["behaviour"] == "cold"
            if item.get("contributions"):
                assert sum(item["contributions"].values()) == pytest.approx(item["score"], abs=1e-5)
                assert "imputed" not in item or item["contributions"]["behaviour"] != 0


def test_item_lookups_say_what_is_imputed(cold_client: TestClient) -> None:
    page = cold_client.get("/items?limit=60").json()["items"]
    assert {item["item_id"] for item in page if item["imputed"]} == {f"i{row}" for row in NEW}
    one = cold_client.get("/items/i13").json()
    ItemAnswer.model_validate(one, extra="forbid")
    assert (one["imputed"], one["missing"], one["slots"]) == (True, COLD, ["text", "image"])
    nothing = cold_client.get("/items/i3").json()
    assert (nothing["imputed"], nothing["missing"]["behaviour"]) == (False, "cold")
    assert cold_client.get("/items/i1").json()["imputed"] is False


def test_imputed_behaviour_is_counted_apart(cold_client: TestClient, cold_bundle: Bundle) -> None:
    counts = count_missing(cold_bundle)
    assert (counts["behaviour", "cold"], counts["behaviour", "imputed"]) == (1, len(NEW))
    assert ("text", "imputed") not in counts
    assert metric(cold_client, "vlm2rec_bundle_missing_items", slot="behaviour", reason="imputed") == len(NEW)
    assert metric(cold_client, "vlm2rec_bundle_missing_items", slot="behaviour", reason="cold") == 1

    def answered(reason: str) -> float:
        return metric(cold_client, "vlm2rec_answered_missing_total", slot="behaviour", reason=reason) or 0.0

    before = answered("imputed"), answered("cold")
    post(cold_client, "/recommend", user_id="nobody", k=60)  # every item is popular
    assert (answered("imputed") - before[0], answered("cold") - before[1]) == (len(NEW), 1)


def new_ones(items: list[dict[str, Any]]) -> int:
    return sum(item["item_id"] in {f"i{row}" for row in NEW} for item in items)


def test_the_bundle_says_how_many_places_are_kept_unless_the_request_does(cold_client: TestClient) -> None:
    plain = post(cold_client, "/recommend", items=["i1"], k=10, fresh_share=0)
    assert new_ones(plain) < 2
    by_default = post(cold_client, "/recommend", items=["i1"], k=10)
    assert new_ones(by_default) == 2
    assert post(cold_client, "/recommend", items=["i1"], k=10, fresh_share=None) == by_default
    assert new_ones(post(cold_client, "/recommend", items=["i1"], k=10, fresh_share=0.5)) == 5
    alike = post(cold_client, "/similar", item_id="i1", k=10)
    assert post(cold_client, "/similar", item_id="i1", k=10, fresh_share=0) == alike
    assert new_ones(post(cold_client, "/similar", item_id="i1", k=10, fresh_share=0.3)) >= 3
    batch = cold_client.post("/recommend/batch", json={"requests": [{"items": ["i1"], "k": 10}]}).json()
    assert batch["answers"][0]["items"] == by_default
    assert cold_client.get("/bundle").json()["manifest"]["fresh_share"] == 0.2


@pytest.mark.parametrize("share", [-0.1, 1.1, "0.1", True])
def test_a_share_out_of_range_is_refused(cold_client: TestClient, share: Any) -> None:
    answer = cold_client.post("/recommend", json={"items": ["i1"], "fresh_share": share})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "fresh_share"
