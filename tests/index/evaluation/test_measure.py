"""Kinds of query, filters and recall, by hand and on searchers whose quality is known."""

import itertools

import numpy as np
import pytest

from index.evaluation.measure import (
    PLAIN,
    ExactResults,
    QuerySet,
    latency_ms,
    query_kinds,
    random_filters,
    result_spread,
)
from index.items.slots import Slot, SlotLayout
from index.search.row_mask import RowMask

LAYOUT = SlotLayout((Slot("text", 2), Slot("image", 2)))


class Searching:
    """Finds the exact best allowed rows and drops a share of each result from its end."""

    def __init__(self, vectors, lost=0.0):
        self.vectors, self.lost, self.query_set = vectors, lost, []

    def search(self, queries, k, allowed=None):
        self.query_set.append(allowed)
        scores = queries @ self.vectors.T
        if allowed is not None:
            scores[:, ~allowed.findable] = -np.inf
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(scores, rows, axis=1)
        found[:, k - round(self.lost * k) :] = -np.inf
        return rows, found.astype(np.float32)


INDEXED = np.arange(2000) % 10 != 0


@pytest.fixture(scope="module")
def exact():
    rng = np.random.default_rng(0)
    vectors = rng.integers(-1000, 1000, (2000, 4)).astype(np.float32)  # integers, so that every sum is exact
    vectors[~INDEXED] = 0
    queries = rng.integers(-1000, 1000, (70, 4)).astype(np.float32)
    kinds = query_kinds(queries, LAYOUT, {"text": 1800, "image": 1800})
    return ExactResults(kinds, vectors, INDEXED, LAYOUT, 10, lambda _: None), vectors


def test_kinds_by_hand():
    queries = np.array([[1, 2, 3, 4]], np.float32)
    kinds = query_kinds(queries, LAYOUT, {"text": 5, "image": 0})
    assert {name: query_set.tolist() for name, query_set in kinds.items()} == {
        "plain": [[1, 2, 3, 4]],
        "text x3": [[3, 6, 3, 4]],
        "text alone": [[1, 2, 0, 0]],
    }
    assert list(query_kinds(queries[:, :2], SlotLayout((Slot("text", 2),)), {"text": 5})) == [PLAIN]


def test_every_kind_of_query_is_measured(exact):
    answers, _ = exact
    filters = ["filtered 50 %", "filtered 10 %", "filtered 1 %", "filtered 0.1 %"]
    slots = [f"{slot} {how}" for slot in LAYOUT.names for how in ("x3", "alone")]
    assert list(answers.kinds) == [PLAIN, *filters, *slots, "plain top 100", "nearest 1 % excluded"]
    everyday = [kind for kind, query_set in answers.kinds.items() if query_set.unfiltered and query_set.k == 10]
    assert everyday == [PLAIN, *slots]
    assert {kind: answers.kinds[kind].allowed.count for kind in filters} == {
        "filtered 50 %": 900,
        "filtered 10 %": 180,
        "filtered 1 %": 18,
        "filtered 0.1 %": 2,
    }
    assert [query_set.k for query_set in answers.kinds.values()] == [10, 10, 10, 10, 2, *[10] * 4, 100, 10]


def test_random_filters_allow_indexed_rows_only_and_are_nested():
    filters = list(random_filters(INDEXED).values())
    for wide, narrow in itertools.pairwise(filters):
        assert (wide.mask & ~INDEXED).sum() == 0
        assert (narrow.mask & ~wide.mask).sum() == 0
    assert list(random_filters(np.ones(40, bool))) == ["filtered 50 %", "filtered 10 %"]
    assert random_filters(np.zeros(40, bool)) == {}


def test_a_perfect_searcher_has_recall_1_and_half_of_it_half(exact):
    answers, vectors = exact
    for kind in answers.kinds:
        assert answers.recall(Searching(vectors), kind) == 1.0
        assert answers.recall(Searching(vectors, lost=0.5), kind) == 0.5
        assert answers.recall(Searching(vectors, lost=0.5), kind, np.array([3])) == 0.5
        assert answers.recall(Searching(vectors, lost=1), kind) == 0.0


def test_the_filter_per_query_excludes_its_nearest_hundredth(exact):
    answers, vectors = exact
    query_set = answers.kinds["nearest 1 % excluded"]
    searching = Searching(vectors)
    answers.recall(searching, "nearest 1 % excluded")
    assert len(searching.query_set) == len(query_set.queries) == 32
    for query, allowed, bound in zip(query_set.queries, searching.query_set, query_set.min_scores, strict=True):
        scores = np.where(INDEXED, vectors @ query, -np.inf)
        forbidden = np.flatnonzero(~allowed.mask)
        assert set(forbidden.tolist()) == set(np.argsort(-scores, kind="stable")[:18].tolist())
        assert bound == np.sort(scores)[::-1][18 + 9]
        assert allowed.removed == 0  # a filter like any other, so nothing tells the search where to look

    class BlindToFilters(Searching):
        def search(self, queries, k, allowed=None):
            rows, scores = super().search(queries, k)
            scores[~allowed.findable[rows]] = -np.inf
            return rows, scores

    assert answers.recall(BlindToFilters(vectors), "nearest 1 % excluded") == 0.0


def test_too_few_rows_for_some_kinds():
    vectors = np.eye(4, dtype=np.float32)
    answers = ExactResults({PLAIN: vectors}, vectors, np.ones(4, bool), LAYOUT, 10, lambda _: None)
    assert {kind: query_set.k for kind, query_set in answers.kinds.items()} == {PLAIN: 4, "filtered 50 %": 2}
    assert answers.recall(Searching(vectors), "filtered 50 %") == 1.0


def test_latency_is_measured_one_query_at_a_time_under_its_filter(exact):
    answers, vectors = exact
    searching = Searching(vectors)
    times = latency_ms(searching, answers.kinds["nearest 1 % excluded"])
    assert 0 <= times["p50"] <= times["p90"] <= times["p99"]
    assert len(searching.query_set) == 32
    assert all(isinstance(allowed, RowMask) for allowed in searching.query_set)


def test_a_row_with_a_score_equal_to_the_kth_is_correct():
    vectors = np.zeros((50, 4), np.float32)
    vectors[:3, 0] = 1.0
    queries = np.array([[1, 0, 0, 0]], np.float32)
    answers = ExactResults({PLAIN: queries}, vectors, np.ones(50, bool), LAYOUT, 10, lambda _: None)

    class FromTheEnd:
        def search(self, queries, k, allowed=None):
            rows = np.array([[0, 1, 2, *range(49, 42, -1)]])
            return rows, (queries @ vectors.T)[:, rows[0]]

    assert answers.recall(FromTheEnd(), PLAIN) == 1.0


def test_result_spread_by_hand():
    vectors = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]], np.float32)

    class First:
        def search(self, queries, k, allowed=None):
            return np.array([[2, 0, -1], [2, 1, -1]]), None

    queries = np.array([[1, 0, 1, 0], [3, 0, 1, 0]], np.float32)
    # shares of text: row 2: 1/2, row 0: 1; row 2: 3/4, row 1: 0 → mean 9/16
    plain = QuerySet(queries, 3, np.zeros(2, np.float32), np.zeros((2, 3), np.int64))
    assert result_spread(First(), plain, vectors, LAYOUT) == {
        "queries": 2,
        "distinct_items": 3,
        "slot_shares": {"text": 0.5625, "image": 0.4375},
    }
