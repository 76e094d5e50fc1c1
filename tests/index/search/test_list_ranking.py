"""Searches by slots and lists together, against brute force over every row."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.bundle.bundle import Bundle
from index.errors import SearchError
from index.lists.list_query import FoundParts, ListQuery
from index.search.scoring import ScoredRows
from tests.support.listed_bundles import random_lists, with_lists

ITEMS = 300
SLOTS = ("text", "image", "behaviour")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, make_bundle) -> dict[str, Bundle]:
    """Bundles with lists, by the kind of their index; all of them find every row."""
    out = tmp_path_factory.mktemp("listed")
    found = {}
    for kind in ("flat", "hnsw", "ivf"):
        plain = make_bundle(out / kind, kind, items=ITEMS, target_recall=1.0)
        found[kind] = Bundle.load(with_lists(plain, random_lists(ITEMS, neighbours=40), out / kind))
    return found


def whole_scores(bundle: Bundle, query: np.ndarray, history: ListQuery | None) -> np.ndarray:
    """(n,) float64 scores of every row, one addition at a time."""
    scores = bundle.vectors(np.arange(len(bundle))).astype(np.float64) @ query
    if history is None:
        return scores
    lists = bundle.list_scores.lists
    for item_list in lists.lists:
        scale = lists.weights.weights[item_list.name]
        if history.slot_weights is not None:
            scale *= float(history.slot_weights[SLOTS.index(item_list.slot)])
        for age, row in enumerate(history.rows[::-1].tolist()):
            factor = scale if history.weights is None else scale * float(history.weights[::-1][age])
            if history.recency:
                factor *= float(lists.weights.recency[age]) if age < len(lists.weights.recency) else 0.0
            for near, value in zip(*item_list.of(row), strict=True):
                scores[near] += factor * float(value)
    return scores


def rows_above(found: ScoredRows, number: int) -> list[int]:
    """The rows of a query with a better score than its last one."""
    return found.rows[number][found.scores[number] > found.scores[number, -1]].tolist()


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 5))
    weighted, reweighed = draw(st.booleans()), draw(st.booleans())
    queries, histories = [], []
    for _ in range(count):
        scale = rng.choice([0.0, 0.5, 1.0, 3.0], size=3).astype(np.float32) if reweighed else np.ones(3, np.float32)
        query = rng.normal(size=12).astype(np.float32) * np.repeat(scale, (6, 4, 2))
        rows = rng.integers(0, ITEMS, size=rng.integers(0, 12))
        weights = rng.uniform(0.1, 4.0, len(rows)).astype(np.float32) if weighted else None
        recency = bool(rng.integers(2))
        listed = ListQuery(rows, weights, scale if reweighed else None, recency=recency)
        queries.append(query)
        histories.append(listed if rng.random() < 0.85 else None)
    share = draw(st.sampled_from([None, 0.9, 0.5, 0.05, 0.0]))
    return {
        "queries": np.array(queries) * np.float32(draw(st.sampled_from([0.0, 0.1, 1.0]))),
        "histories": histories,
        "k": draw(st.sampled_from([1, 7, 20, 120, 400])),
        "mask": None if share is None else rng.random(ITEMS) < share,
    }


@pytest.mark.no_cover
@settings(max_examples=150, deadline=None)
@given(requests(), st.sampled_from(["flat", "hnsw", "ivf"]))
def test_a_search_gives_the_exact_best_of_the_whole_score(bundles, asked, kind):
    bundle, queries, histories, k = bundles[kind], asked["queries"], asked["histories"], asked["k"]
    mask = asked["mask"]
    may = bundle.indexed if mask is None else bundle.indexed & mask
    found = bundle.search(queries, k, allowed=mask, histories=histories)
    exact = bundle.exact(queries, k, allowed=mask, histories=histories)
    assert found.scores.tobytes() == exact.scores.tobytes()
    # Of more rows with the score of the last one than fit, an index finds any.
    above = found.scores > found.scores[:, -1:]
    assert found.rows[above].tolist() == exact.rows[above].tolist()
    parts = bundle.contributions(queries, found.rows, histories)
    for number, (query, history) in enumerate(zip(queries, histories, strict=True)):
        whole = whole_scores(bundle, query, history)
        count = min(k, int(may.sum()))
        rows, scores = found.rows[number], found.scores[number]
        assert (rows[count:] == -1).all()
        assert np.isneginf(scores[count:]).all()
        rows, scores = rows[:count], scores[:count]
        assert len(set(rows.tolist())) == count
        assert may[rows].all()
        np.testing.assert_allclose(scores, whole[rows], rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(scores, np.sort(whole[may])[::-1][:count], rtol=1e-6, atol=1e-5)
        assert sorted(range(count), key=lambda at: (-scores[at], rows[at])) == list(range(count))
        np.testing.assert_allclose(parts[number, :count].sum(axis=1), scores, rtol=1e-6, atol=1e-5)
        alone = bundle.search(queries[number : number + 1], k, allowed=mask, histories=[history])
        assert alone.rows[0][above[number]].tolist() == rows_above(found, number)
        assert alone.scores[0].tobytes() == found.scores[number].tobytes()
        deeper = bundle.search(queries[number : number + 1], k + 30, allowed=mask, histories=[history])
        assert deeper.rows[0, :k][above[number]].tolist() == rows_above(found, number)
        assert deeper.scores[0, :k].tobytes() == found.scores[number].tobytes()


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_kept_parts_of_found_items_are_those_computed_anew(bundles, kind):
    bundle, rng = bundles[kind], np.random.default_rng(5)
    queries = rng.normal(size=(4, 12)).astype(np.float32) * np.float32(0.1)
    weights = np.array([2.0, 0.0, 1.0], dtype=np.float32)
    made = [(rng.integers(0, ITEMS, 9), None, None), (rng.integers(0, ITEMS, 3), None, weights), (np.array([7]), None)]
    plain = [*(ListQuery(*given) for given in made), None]
    keeping = [*(ListQuery(*given, found=FoundParts()) for given in made), None]
    for first, last, k in ((0, 4, 20), (0, 1, 20), (1, 3, 60), (0, 2, 400)):
        rows = bundle.search(queries[first:last], k, histories=keeping[first:last]).rows
        apart = bundle.list_contributions(plain[first:last], rows)
        assert bundle.list_contributions(keeping[first:last], rows).tobytes() == apart.tobytes()
        again = rows[:, ::-1].copy()
        assert (bundle.list_contributions(keeping[first:last], again) == apart[:, ::-1]).all()
    assert keeping[0].found is not None
    rows = bundle.search(queries[:1], 20, histories=keeping[:1]).rows
    assert keeping[0].found.of(rows[0]) is not None
    other = np.setdiff1d(np.arange(ITEMS), bundle.search(queries[:1], 60, histories=keeping[:1]).rows[0])[None, :5]
    assert (
        bundle.list_contributions(keeping[:1], other).tolist() == bundle.list_contributions(plain[:1], other).tolist()
    )


def test_the_part_of_a_list_lies_in_its_slot(bundles):
    bundle = bundles["flat"]
    queries = bundle.encode([np.array([5, 9, 11])])
    history = ListQuery(np.array([5, 9, 11]), None, np.array([2.0, 0.0, 1.0], dtype=np.float32))
    rows = bundle.search(queries, 30, histories=[history]).rows
    apart = bundle.list_contributions([history], rows)
    difference = bundle.contributions(queries, rows, [history]) - bundle.contributions(queries, rows)
    assert bundle.list_scores.lists.names == ("co", "words", "look")
    np.testing.assert_allclose(difference[0], apart[0][:, [1, 2, 0]], atol=1e-6)  # text, image, behaviour
    assert not apart[0][:, 2].any()  # the image slot weighs 0
    assert apart[0][:, 0].any()
    assert apart[0][:, 1].any()


def test_no_history_is_a_search_by_slots_alone(bundles):
    bundle = bundles["hnsw"]
    queries = bundle.encode([np.array([5]), np.array([7, 8])])
    plain = bundle.search(queries, 12)
    for histories in (None, [None, None], [ListQuery(np.zeros(0, np.int64)), None]):
        found = bundle.search(queries, 12, histories=histories)
        assert found.rows.tolist() == plain.rows.tolist()
        assert found.scores.tobytes() == plain.scores.tobytes()


def test_a_bundle_without_lists_ignores_histories(built):
    bundle = Bundle.load(built)
    queries, history = bundle.encode([np.array([5])]), [ListQuery(np.array([5]))]
    assert bundle.search(queries, 9, histories=history).rows.tolist() == bundle.search(queries, 9).rows.tolist()
    rows = bundle.search(queries, 9).rows
    assert bundle.contributions(queries, rows, history).tolist() == bundle.contributions(queries, rows).tolist()
    assert bundle.list_contributions(history, rows).shape == (1, 9, 0)


def test_similarities_are_the_parts_of_each_item_alone(bundles):
    scores = bundles["flat"].list_scores
    history, rows = np.array([3, 17, 3, 250]), np.array([40, 8, 299, 0, 17])
    found = scores.similarities(history, rows)
    for number, row in enumerate(history):
        alone = scores.contributions([ListQuery(np.array([row]), recency=False)], rows[None])[0].sum(axis=1)
        np.testing.assert_allclose(found[number], alone, atol=1e-6)
    assert scores.similarities(history[:0], rows).shape == (0, 5)
    assert scores.similarities(history, rows[:0]).shape == (4, 0)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: ListQuery(np.zeros((1, 2), np.int64)), "needs"),
        (lambda: ListQuery(np.array([1, 2]), np.ones(1, np.float32)), "needs"),
        (lambda: ListQuery(np.array([1]), np.zeros(1, np.float32)), "above 0"),
        (lambda: ListQuery(np.array([1]), np.array([np.nan], np.float32)), "above 0"),
        (lambda: ListQuery(np.array([1]), None, np.array([1, -1, 1], np.float32)), "at least 0"),
    ],
)
def test_refuses_a_history_that_breaks_a_rule(make, rule):
    with pytest.raises(SearchError, match=rule):
        make()


def test_refuses_histories_that_do_not_fit(bundles):
    bundle = bundles["flat"]
    queries = bundle.encode([np.array([5])])
    for histories, rule in (
        ([], "for each of 1 queries"),
        ([ListQuery(np.array([300]))], "0 … 299"),
        ([ListQuery(np.array([-1]))], "0 … 299"),
        ([ListQuery(np.array([1]), None, np.ones(2, np.float32))], "slot weights must be"),
    ):
        with pytest.raises(SearchError, match=rule):
            bundle.search(queries, 5, histories=histories)
