"""Slot weights below 1 rank items alike, whichever slots they lack; against plain numpy."""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from index.items.item_table import ItemTable
from index.search.row_mask import RowMask
from service.recommend.engine import InlineEngine, Search
from service.recommend.hidden_items import HiddenItems
from service.recommend.online_recall import SampledAnswer, _Check, recall_of
from service.recommend.query import Query, Recommendations
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.recommend.slot_scales import SlotScales
from service.request_trace import Trace
from tests.support.listed_bundles import bundle_with_new_items, with_new_items
from tests.support.oracle import Oracle
from tests.support.stores.memory_histories import MemoryHistories

NEW = [6, 13, 20, 27, 34]
KNOWN, TWIN = 12, 13
"""Items of the same text and picture, of which the second has no behaviour vector."""
NO_BEHAVIOUR = {"behaviour": 0.0}
ITEMS = [("i10", 1.0), ("i11", 1.0)]


@pytest.fixture(scope="module")
def twins(small_table: ItemTable) -> ItemTable:
    vectors = np.array(small_table.vectors)
    vectors[TWIN] = vectors[KNOWN]
    return dataclasses.replace(small_table, vectors=vectors)


@pytest.fixture(scope="module")
def unimputed(twins: ItemTable, small_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("unimputed")
    return Bundle.load(bundle_with_new_items(twins, small_encoder, out, NEW, length=0))


@pytest.fixture(scope="module")
def plain(twins: ItemTable) -> Oracle:
    return Oracle(with_new_items(twins, NEW, 0))


def ask(bundle: Bundle, searches: list[Search] | None = None, **query: Any) -> Recommendations:
    def observe(_bundle: Bundle, _query: Query, found: Any, _answer: Recommendations) -> None:
        if searches is not None:
            searches.extend(found)

    asked = Recommender(MemoryHistories(), InlineEngine(), HiddenItems(), RecentHistories(10), observe)
    return asyncio.run(asked.recommend(bundle, Query(**{"items": ITEMS, **query}), Trace("r")))


def ranked(bundle: Bundle, answer: Recommendations) -> list[str]:
    return [bundle.ids.id(row) for row in answer.rows.tolist()]


def test_without_weight_for_behaviour_old_and_new_score_alike(unimputed: Bundle) -> None:
    def scores(**query: Any) -> dict[int, float]:
        answer = ask(unimputed, k=60, explain=True, **query)
        assert answer.contributions is not None
        np.testing.assert_allclose(answer.contributions.sum(axis=1), answer.scores, atol=1e-5)
        return dict(zip(answer.rows.tolist(), answer.scores.tolist(), strict=True))

    weighed = scores(slot_weights=NO_BEHAVIOUR)
    assert weighed[TWIN] == pytest.approx(weighed[KNOWN], abs=1e-3)  # of vectors rounded to float16
    assert weighed[KNOWN] != 0


@pytest.mark.parametrize("k", [5, 60])
@pytest.mark.parametrize(
    "weights", [NO_BEHAVIOUR, {"image": 0.0}, {"text": 0.3, "image": 2.0}, {"behaviour": 0.5}, {"text": 5.0}]
)
def test_every_weighting_gives_what_numpy_gives(
    unimputed: Bundle, plain: Oracle, weights: dict[str, float], k: int
) -> None:
    query = plain.encoded(["i10", "i11"]) * unimputed.layout.weights(weights)
    best = plain.best(query, k, {"i10", "i11"}, slot_weights=weights)
    answer = ask(unimputed, k=k, slot_weights=weights, explain=True)
    assert answer.scores == pytest.approx([score for _, score in best], abs=1e-5)
    assert answer.contributions is not None
    np.testing.assert_allclose(answer.contributions.sum(axis=1), answer.scores, atol=1e-5)
    assert ranked(unimputed, answer)[:5] == [item for item, _ in best][:5]
    pages = [ask(unimputed, k=4, offset=offset, slot_weights=weights) for offset in (0, 4, 8)]
    assert [item for page in pages for item in ranked(unimputed, page)] == [
        item for item, _ in plain.best(query, 12, {"i10", "i11"}, slot_weights=weights)
    ]


def test_a_filter_and_places_for_new_items_hold(unimputed: Bundle, plain: Oracle) -> None:
    hats = np.array([row % 3 == 1 for row in range(60)])
    query = plain.encoded(["i10", "i11"]) * unimputed.layout.weights(NO_BEHAVIOUR)
    best = plain.best(query, 8, {"i10", "i11"}, hats, NO_BEHAVIOUR)
    condition = {"must": [{"field": "category", "eq": "hats"}]}
    answer = ask(unimputed, k=8, slot_weights=NO_BEHAVIOUR, filter=condition)
    assert ranked(unimputed, answer) == [item for item, _ in best]
    new = np.isin(np.arange(60), NEW)
    best_new = plain.best(query, 2, {"i10", "i11"}, new, NO_BEHAVIOUR)
    answer = ask(unimputed, k=4, slot_weights=NO_BEHAVIOUR, fresh_share=0.5)
    assert {item for item, _ in best_new} <= set(ranked(unimputed, answer))


def test_diverse_pages_are_disjoint_and_explained(unimputed: Bundle) -> None:
    pages = [
        ask(unimputed, k=6, offset=offset, diversity=0.5, slot_weights=NO_BEHAVIOUR, explain=True)
        for offset in (0, 6, 12)
    ]
    rows = np.concatenate([page.rows for page in pages])
    assert len(set(rows.tolist())) == 18
    for page in pages:
        assert page.contributions is not None
        np.testing.assert_allclose(page.contributions.sum(axis=1), page.scores, atol=1e-5)


def test_live_recall_checks_every_group(unimputed: Bundle) -> None:
    searches: list[Search] = []
    answer = ask(unimputed, searches, k=10, slot_weights=NO_BEHAVIOUR)
    assert len(searches) == 3  # all slots; no behaviour, or a picture less; a picture less, but behaviour
    sample = SampledAnswer(unimputed, searches, answer.rows, filtered=False, plain=False)
    for search in searches:
        checked = _Check.of(sample, search).run()
        assert checked is not None
        assert recall_of(search[1].scores, checked[0]) == 1


def test_requests_that_scale_nothing_search_once(unimputed: Bundle, bundle: Bundle) -> None:
    for weights in (None, {}, {"text": 1.0}, {"image": 3.0}):
        searches: list[Search] = []
        ask(unimputed, searches, slot_weights=weights)
        assert len(searches) == 1

    async def groups() -> int:
        return len(
            await SlotScales().groups(
                bundle, bundle.allowed({"must": [{"field": "image", "exists": True}]}), NO_BEHAVIOUR
            )
        )

    assert asyncio.run(groups()) == 1  # every item with a picture has all slots


def test_masks_are_kept_within_a_bound_and_made_again(unimputed: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a large catalogue: in another thread, and with room for the masks of one request alone."""
    monkeypatch.setattr("service.recommend.slot_scales._INLINE_ITEMS", 0)
    monkeypatch.setattr("service.recommend.slot_scales.CACHE_BYTES", 1)
    scales, weightings = SlotScales(), [NO_BEHAVIOUR, {"text": 0.3}, {"text": 0.2, "image": 0.6}, {"image": 0.1}]
    filters = [None, RowMask.of(np.arange(60) % 2 == 0, unimputed.indexed)]

    def groups(of: SlotScales) -> list[list[tuple[float, list[int]]]]:
        found = [asyncio.run(of.groups(unimputed, allowed, weights)) for allowed in filters for weights in weightings]
        return [[(one.scale, one.allowed.rows.tolist()) for one in some if one.allowed] for some in found]

    first = groups(scales)
    assert groups(scales) == first == groups(SlotScales())
    (slots,) = scales._slots.values()
    assert len(slots._kept) == 4
    assert slots._bytes == sum(mask.nbytes for _, mask in slots._kept.values())
    for number, parts in enumerate(first):  # every allowed row is in one group
        allowed = filters[number // len(weightings)]
        rows = np.flatnonzero(unimputed.indexed) if allowed is None else allowed.rows
        assert sorted(row for _, some in parts for row in some) == rows.tolist()


@pytest.fixture(scope="module")
def unimputed_client(open_client: Any, unimputed: Bundle) -> Iterator[TestClient]:
    with open_client() as client:
        client.app.state.active_bundle.swap(unimputed)
        yield client


@pytest.mark.parametrize("path", ["/recommend", "/similar"])
def test_http_answers_the_same(unimputed_client: TestClient, unimputed: Bundle, path: str) -> None:
    sent = {"item_id": "i10"} if path == "/similar" else {"items": ["i10", "i11"]}
    body = {**sent, "k": 58, "slot_weights": NO_BEHAVIOUR, "explain": True}
    items = unimputed_client.post(path, json=body).json()["items"]
    scores = {item["item_id"]: item["score"] for item in items}
    assert scores[f"i{TWIN}"] == pytest.approx(scores[f"i{KNOWN}"], abs=1e-3)
    for item in items:
        assert sum(item["contributions"].values()) == pytest.approx(item["score"], abs=1e-5)
