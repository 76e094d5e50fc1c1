"""Recommendations from a bundle with item-to-item lists, against plain Python over its vectors and lists."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from index.lists.list_query import ListQuery
from service.bundles.comparison import ComparedBundle, compare
from service.recommend.contributions import computed, profile_of
from service.recommend.engine import InlineEngine, SearchJob, run_searches
from service.recommend.hidden_items import HiddenItems
from service.recommend.online_recall import SampledAnswer, _Check, recall_of
from service.recommend.query import Query, Recommendations
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.request_trace import Trace
from tests.support.listed_bundles import random_lists, with_lists
from tests.support.oracle import Oracle
from tests.support.stores.memory_histories import MemoryHistories

Weighted = Sequence[tuple[str, float]]


@pytest.fixture(scope="module")
def listed(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    lists = random_lists(len(Bundle.load(small_bundle)), seed=4, neighbours=12)
    return Bundle.load(with_lists(small_bundle, lists, tmp_path_factory.mktemp("listed")))


def ask(bundle: Bundle, items: Weighted, *, similar: bool = False, **query: Any) -> Recommendations:
    recommender = Recommender(MemoryHistories(), InlineEngine(), HiddenItems(), RecentHistories(10))
    call = recommender.similar if similar else recommender.recommend
    return asyncio.run(call(bundle, Query(items=items, **query), Trace("r")))


def list_parts(bundle: Bundle, items: Weighted, slot_weights: dict[str, float], *, similar: bool) -> np.ndarray:
    """(n,) what the lists add to each row, one addition at a time."""
    lists = bundle.list_scores.lists
    total = np.zeros(len(bundle))
    kept = [(row, weight) for item, weight in items if (row := bundle.ids.row(item)) is not None]
    size = sum(abs(weight) for row, weight in kept if bundle.indexed[row])
    positive = [(row, weight) for row, weight in kept if weight > 0 and bundle.indexed[row]]
    for age, (row, weight) in enumerate(reversed(positive)):
        recency = lists.weights.recency
        factor = weight / size if similar else weight * (recency[age] if age < len(recency) else 0.0)
        for item_list in lists.lists:
            scale = lists.weights.weights[item_list.name] * slot_weights.get(item_list.slot, 1.0)
            for near, value in zip(*item_list.of(row), strict=True):
                total[near] += factor * scale * float(value)
    return total


def expected(
    bundle: Bundle, query: np.ndarray, added: np.ndarray, without: set[str], scales: np.ndarray | float = 1.0
) -> list[tuple[str, float]]:
    scores = bundle.vectors(np.arange(len(bundle))).astype(np.float64) @ query * scales + added
    order = [row for row in np.argsort(-scores, kind="stable").tolist() if bundle.indexed[row]]
    return [(bundle.ids.id(row), scores[row]) for row in order if bundle.ids.id(row) not in without]


def same(bundle: Bundle, answer: Recommendations, wanted: list[tuple[str, float]]) -> None:
    assert [bundle.ids.id(row) for row in answer.rows.tolist()] == [item for item, _ in wanted]
    np.testing.assert_allclose(answer.scores, [score for _, score in wanted], rtol=1e-6, atol=1e-5)


def by_layout(bundle: Bundle, slot_weights: dict[str, float]) -> np.ndarray:
    return np.concatenate([np.full(slot.dim, slot_weights.get(slot.name, 1.0)) for slot in bundle.layout.slots])


@pytest.mark.parametrize("slot_weights", [{}, {"text": 0.0}, {"behaviour": 3.0, "image": 0.5}])
def test_a_sequence_is_ranked_by_the_whole_score(
    listed: Bundle, oracle: Oracle, slot_weights: dict[str, float]
) -> None:
    items = [(f"i{row}", 1.0) for row in (10, 11, 12, 20, 30, 31, 8)]
    names = {item for item, _ in items}
    query = oracle.encoded([item for item, _ in items]) * by_layout(listed, slot_weights)
    added = list_parts(listed, items, slot_weights, similar=False)
    assert added.any()
    wanted = expected(listed, query, added, names, oracle.scales(slot_weights))
    answer = ask(listed, items, k=12, slot_weights=slot_weights, explain=True, explain_lists=True)
    assert answer.strategy == "sequence"
    same(listed, answer, wanted[:12])
    np.testing.assert_allclose(answer.contributions.sum(axis=1), answer.scores, atol=1e-5)
    np.testing.assert_allclose(answer.list_contributions.sum(axis=1), added[answer.rows], atol=1e-5)
    pages = [ask(listed, items, k=5, offset=offset, slot_weights=slot_weights) for offset in (0, 5, 10)]
    same(listed, pages[2], wanted[10:15])
    assert np.concatenate([page.rows for page in pages])[:12].tolist() == answer.rows.tolist()


def test_more_items_than_the_encoder_reads_still_count_in_the_lists(small_bundle: Path, tmp_path: Path) -> None:
    lists = random_lists(len(Bundle.load(small_bundle)), seed=4, neighbours=12, recency=9)
    bundle = Bundle.load(with_lists(small_bundle, lists, tmp_path))
    assert bundle.max_history < 9
    items = [(f"i{row}", 1.0) for row in range(10, 20)]
    answer = ask(bundle, items, k=10, explain=True, explain_lists=True)
    added = list_parts(bundle, items, {}, similar=False)
    np.testing.assert_allclose(answer.list_contributions.sum(axis=1), added[answer.rows], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    items=st.lists(
        st.tuples(st.integers(0, 59), st.sampled_from([1.0, 0.5, 2.0, -1.0, 1e-300])),
        min_size=1,
        max_size=9,
        unique_by=lambda pair: pair[0],
    ),
    similar=st.booleans(),
    exclude_seen=st.booleans(),
)
def test_weighted_items(listed: Bundle, items: list[tuple[int, float]], similar: bool, exclude_seen: bool) -> None:
    given_items = [(f"i{row}", weight) for row, weight in items]
    answer = ask(
        listed, given_items, k=15, similar=similar, exclude_seen=exclude_seen, explain=True, explain_lists=True
    )
    if answer.strategy == "popular":
        return
    added = list_parts(listed, given_items, {}, similar=answer.strategy == "similar")
    if sum(weight > 0 for _, weight in items) <= listed.max_history:
        np.testing.assert_allclose(answer.list_contributions.sum(axis=1), added[answer.rows], atol=1e-5)
    np.testing.assert_allclose(answer.contributions.sum(axis=1), answer.scores, rtol=1e-6, atol=1e-5)
    assert (np.diff(answer.scores) <= 0).all()


def test_similar_items_are_ranked_by_slots_and_lists_without_recency(listed: Bundle, oracle: Oracle) -> None:
    items = [("i8", 2.0), ("i11", 1.0), ("i20", -0.5)]
    query = sum(weight * oracle.vectors[oracle.row(item)] for item, weight in items) / 3.5
    added = list_parts(listed, items, {}, similar=True)
    answer = ask(listed, items, similar=True, k=10)
    assert answer.strategy == "similar"
    same(listed, answer, expected(listed, query, added, {item for item, _ in items})[:10])


def test_a_filter_holds_for_items_in_lists(listed: Bundle) -> None:
    items = [("i10", 1.0), ("i11", 1.0)]
    condition = {"must": [{"field": "category", "in": ["shoes"]}], "must_not": []}
    allowed = listed.allowed(condition)
    answer = ask(listed, items, k=10, filter=condition, explain=True, explain_lists=True)
    assert allowed.mask[answer.rows].all()
    assert answer.list_contributions.any()
    everything = ask(listed, items, k=60)
    wanted = [row for row in everything.rows.tolist() if allowed.mask[row]]
    assert answer.rows.tolist() == wanted[:10]


def test_the_nearest_history_item_is_the_one_that_alone_scores_highest(listed: Bundle) -> None:
    history = [10, 11, 12, 30]
    answer = ask(listed, [(f"i{row}", 1.0) for row in history], k=20, explain=True)
    vectors = listed.vectors(np.arange(len(listed))).astype(np.float64)
    alone = [vectors @ vectors[row] + list_parts(listed, [(f"i{row}", 1.0)], {}, similar=True) for row in history]
    assert answer.nearest.tolist() == [history[int(np.argmax([part[row] for part in alone]))] for row in answer.rows]


def test_diverse_pages_are_disjoint_and_explained(listed: Bundle) -> None:
    items = [("i10", 1.0), ("i11", 1.0), ("i30", 1.0)]
    whole = ask(listed, items, k=30, diversity=0.4, explain=True)
    pages = [ask(listed, items, k=10, offset=offset, diversity=0.4) for offset in (0, 10, 20)]
    assert np.concatenate([page.rows for page in pages]).tolist() == whole.rows.tolist()
    np.testing.assert_allclose(whole.contributions.sum(axis=1), whole.scores, atol=1e-5)


def jobs_of(bundle: Bundle, count: int) -> list[SearchJob]:
    rng = np.random.default_rng(1)
    histories = [np.flatnonzero(bundle.indexed)[rng.integers(0, 50, size=4)] for _ in range(count)]
    return [SearchJob(rows, lambda encoded, _: encoded, 12, None, Trace("r"), ListQuery(rows)) for rows in histories]


def test_a_batch_gives_the_same_scores_as_its_members_alone(listed: Bundle) -> None:
    jobs = jobs_of(listed, 16)
    for job, together in zip(jobs, run_searches(listed, jobs), strict=True):
        alone = run_searches(listed, [job])[0]
        assert alone.rows.tolist() == together.rows.tolist()
        assert alone.scores.tobytes() == together.scores.tobytes()


def test_live_recall_is_measured_against_the_exact_whole_score(listed: Bundle) -> None:
    for job in jobs_of(listed, 8):
        found = run_searches(listed, [job])[0]
        sample = SampledAnswer(listed, [(job, found)], found.rows, filtered=False, plain=True)
        check = _Check.of(sample, sample.searches[0])
        truth, _ = check.run()
        assert truth.tobytes() == found.scores.tobytes()
        assert recall_of(found.scores, truth) == 1.0


def test_a_shadow_comparison_ranks_as_requests_do(listed: Bundle) -> None:
    histories = [("i10", "i11", "i12"), ("i30", "i31")]
    found = compare(ComparedBundle(listed, None), ComparedBundle(listed, None), histories, evaluation_queries=5)
    assert found.overlap == 1.0
    shares = np.zeros(3)
    for history in histories:
        answer = ask(listed, [(item, 1.0) for item in history], k=20, explain=True)
        parts = np.maximum(answer.contributions, 0.0)
        shares += (parts / parts.sum(axis=1, keepdims=True)).sum(axis=0) / 40
    assert list(found.new.slot_shares.values()) == pytest.approx(shares.tolist(), abs=1e-5)


def test_a_profile_counts_the_lists(listed: Bundle) -> None:
    items = ["i10", "i11", "i12", "i13"]
    steps = []
    for number in range(1, 4):
        rows = listed.ids.rows(items[: number + 1])[0]
        query, lists = listed.encode([rows[:-1]]), [ListQuery(rows[:-1])]
        steps.append(np.maximum(listed.contributions(query, rows[None, -1:], lists)[0, 0], 0.0))
    means = np.mean(steps, axis=0)
    assert list(profile_of(listed, items).shares.values()) == pytest.approx((means / means.sum()).tolist(), abs=1e-6)


@pytest.fixture(scope="module")
def listed_client(open_client: Any, listed: Bundle) -> Iterator[TestClient]:
    with open_client() as client:
        client.app.state.active_bundle.swap(listed)
        yield client


@pytest.mark.parametrize("path", ["/recommend", "/similar"])
def test_http_answers_what_the_bundle_answers(listed_client: TestClient, listed: Bundle, path: str) -> None:
    body = {"items": ["i10", {"item_id": "i11", "weight": 2.0}], "k": 8, "slot_weights": {"image": 1.5}}
    found = listed_client.post(path, json=body | {"explain": "full"}).json()
    answer = ask(
        listed,
        [("i10", 1.0), ("i11", 2.0)],
        similar=path == "/similar",
        k=8,
        slot_weights={"image": 1.5},
        explain=True,
        explain_lists=True,
    )
    assert [item["item_id"] for item in found["items"]] == [listed.ids.id(row) for row in answer.rows.tolist()]
    assert [item["score"] for item in found["items"]] == answer.scores.tolist()
    for item, parts in zip(found["items"], answer.list_contributions.tolist(), strict=True):
        assert item["list_contributions"] == dict(zip(("co", "words", "look"), parts, strict=True))
        assert sum(item["contributions"].values()) == pytest.approx(item["score"], abs=1e-5)
    plain = listed_client.post(path, json=body | {"explain": True}).json()
    assert all("list_contributions" not in item for item in plain["items"])
    assert [item["contributions"] for item in plain["items"]] == [item["contributions"] for item in found["items"]]


def test_a_full_explanation_without_lists_names_none(client: TestClient) -> None:
    found = client.post("/recommend", json={"items": ["i10"], "k": 2, "explain": "full"}).json()
    assert [item["list_contributions"] for item in found["items"]] == [{}, {}]
    popular = client.post("/recommend", json={"items": [], "k": 2, "explain": "full"}).json()
    assert [item["list_contributions"] for item in popular["items"]] == [None, None]


def test_contributions_of_several_answers_are_those_of_each(listed: Bundle, small_bundle: Path) -> None:
    plain, ids = Bundle.load(small_bundle), [listed.ids.id(row) for row in np.flatnonzero(listed.indexed)[:9].tolist()]
    asked: list[tuple[Bundle, dict[str, Any]]] = [
        (listed, {"k": 9}), (plain, {"k": 4}), (listed, {"k": 3, "slot_weights": {"text": 0.5}}), (listed, {"k": 30}),
        (listed, {"k": 5, "similar": True}), (listed, {"k": 6, "slot_weights": {"text": 3.0}}), (plain, {"k": 7}),
    ]  # fmt: skip
    answers = [
        ask(bundle, [(ids[number], 1.0), (ids[number + 1], 2.0)], contributions_later=True, explain=True, **query)
        for number, (bundle, query) in enumerate(asked)
    ]
    later = [answer.later for answer in answers if answer.later is not None]
    assert len(later) == len(asked)
    for answer, one, parts in zip(answers, later, computed(later), strict=True):
        assert parts.tobytes() == one().tobytes() == answer.contributions.tobytes()
        np.testing.assert_allclose(parts.sum(axis=1), answer.scores, rtol=1e-6, atol=1e-5)
        assert one.of(slice(2))().tobytes() == parts[:2].tobytes()
    assert [parts.tobytes() for parts in computed(later * 4)] == 4 * [parts.tobytes() for parts in computed(later)]
    assert computed([]) == []
