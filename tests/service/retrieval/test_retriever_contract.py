"""One contract for every retriever: the answers are those of an exact search, whatever finds the items."""

import asyncio
from typing import Any

import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.lists.list_query import ListQuery
from index.search.row_mask import RowMask
from index.search.scoring import ScoredRows
from service.recommend.engine import InlineEngine
from service.recommend.hidden_items import HiddenItems
from service.recommend.query import Query, Recommendations
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.request_trace import Trace
from service.retrieval.faiss_retriever import FaissRetriever
from service.retrieval.retriever import Retriever
from tests.support.stores.memory_histories import MemoryHistories

FILTERS: list[dict[str, Any]] = [
    {"must": [{"field": "category", "eq": "hats"}]},
    {"must": [{"field": "category", "in": ["hats", "bags", "boats"]}]},
    {"must_not": [{"field": "category", "eq": "hats"}]},
    {"must": [{"field": "title", "eq": 'Item "8" \\ größer'}]},
    {"must_not": [{"field": "title", "in": ['Item "8" \\ größer', "\n"]}]},
    {"must": [{"field": "title", "exists": False}]},
    {"must_not": [{"field": "title", "exists": False}]},
    {"must": [{"field": "price", "gte": 3.7, "lt": 370}]},
    {"must": [{"field": "price", "eq": 10 * 0.37}]},
    {"must_not": [{"field": "price", "gt": 37.0}]},
    {"must": [{"field": "weight", "gt": 0.7, "lte": 99.9}]},
    {"must_not": [{"field": "weight", "exists": True}]},
    {"must": [{"field": "stock", "gt": 3.5}]},
    {"must": [{"field": "stock", "in": [1, 2.0, 3.5, 10**30]}]},
    {"must_not": [{"field": "stock", "lte": 30}]},
    {"must": [{"field": "sale", "eq": True}]},
    {"must_not": [{"field": "sale", "eq": True}]},
    {"must": [{"field": "tags", "in": ["red", "blue"]}]},
    {"must_not": [{"field": "tags", "eq": "new"}]},
    {"must": [{"field": "tags", "exists": False}]},
    {"must": [{"field": "day", "gte": "2020-01-01"}]},
    {"must": [{"field": "text", "eq": "short"}]},
    {
        "must": [{"field": "category", "in": ["shoes", "bags"]}, {"field": "price", "lt": 400}],
        "must_not": [{"field": "tags", "eq": "red"}, {"field": "sale", "eq": False}],
    },
]


class Exact(FaissRetriever):
    """The reference: every allowed row is scored."""

    def search(self, bundle: Bundle, queries: Any, k: int, *, allowed: Any = None, histories: Any = None) -> ScoredRows:
        return bundle.exact(queries, k, allowed=allowed, histories=histories)


def queries_of(bundle: Bundle, count: int = 4) -> np.ndarray[Any, Any]:
    return bundle.encode([np.array([row + 1, row + 2]) for row in range(100, 100 + 7 * count, 7)])


def check(retriever: Retriever, bundle: Bundle, queries: Any, k: int, **given: Any) -> ScoredRows:
    """A search that must be as an exact one, to the last bit."""
    found, exact = retriever.search(bundle, queries, k, **given), bundle.exact(queries, k, **given)
    assert found.rows.tolist() == exact.rows.tolist()
    assert found.scores.tolist() == exact.scores.tolist()
    return found


@pytest.mark.parametrize("k", [1, 20, 400, 1600])
def test_the_best_rows_and_scores_are_those_of_an_exact_search(retriever: Retriever, many: Bundle, k: int) -> None:
    found = check(retriever, many, queries_of(many), k)
    assert (np.count_nonzero(found.rows >= 0, axis=1) == min(k, 1499)).all()


def test_no_query_has_no_rows(retriever: Retriever, many: Bundle) -> None:
    found = retriever.search(many, np.zeros((0, many.layout.dim), np.float32), 5)
    assert found.rows.shape == found.scores.shape == (0, 5)


@pytest.mark.parametrize("slot", ["text", "image", "behaviour"])
def test_weights_of_slots_fold_into_the_query(retriever: Retriever, many: Bundle, slot: str) -> None:
    check(retriever, many, queries_of(many) * many.layout.weights({slot: 5.0}), 20)
    check(
        retriever,
        many,
        queries_of(many) * many.layout.weights({name: float(name == slot) for name in many.layout.names}),
        20,
    )


@pytest.mark.parametrize("condition", FILTERS, ids=str)
def test_filters(retriever: Retriever, many: Bundle, condition: dict[str, Any]) -> None:
    check(retriever, many, queries_of(many), 20, allowed=many.allowed(condition))


def test_a_filter_that_allows_nothing(retriever: Retriever, many: Bundle) -> None:
    found = retriever.search(many, queries_of(many), 3, allowed=many.allowed({"must": [{"field": "title", "eq": "?"}]}))
    assert (found.rows == -1).all()
    assert np.isneginf(found.scores).all()


@pytest.mark.parametrize("hidden", [1, 300, 1400])
def test_rows_that_are_hidden_though_they_are_the_nearest(retriever: Retriever, many: Bundle, hidden: int) -> None:
    query = queries_of(many, 1)
    nearest = many.exact(query, hidden).rows[0]
    shown = np.ones(len(many), dtype=np.bool_)
    shown[nearest] = False
    found = check(retriever, many, query, 20, allowed=many.allowed(None, shown))
    assert not np.isin(found.rows, nearest).any()
    check(retriever, many, query, 20, allowed=many.allowed({"must": [{"field": "price", "gt": 1}]}, shown))
    check(retriever, many, query, 20, allowed=RowMask.of(shown, many.indexed))


def test_a_few_of_the_nearest_rows_are_not_enough(retriever: Retriever, many: Bundle) -> None:
    query = queries_of(many, 1)
    shown = np.ones(len(many), dtype=np.bool_)
    shown[many.exact(query, 300).rows[0, 5:]] = False
    check(retriever, many, query, 20, allowed=RowMask.of(shown, many.indexed))


def test_lists_count_exactly(retriever: Retriever, listed: Bundle) -> None:
    queries = queries_of(listed)
    histories = [ListQuery(np.array([5, 9])), None, ListQuery(np.array([1000])), ListQuery(np.array([40, 41, 42]))]
    check(retriever, listed, queries, 20, histories=histories)
    allowed = listed.allowed({"must_not": [{"field": "category", "eq": "hats"}]})
    check(retriever, listed, queries, 20, histories=histories, allowed=allowed)


def test_vectors_that_come_with_the_rows_are_the_stored_ones(retriever: Retriever, listed: Bundle) -> None:
    found = retriever.search(listed, queries_of(listed), 30, histories=[ListQuery(np.array([5, 9]))] * 4)
    if found.vectors is not None:
        assert retriever.waits
        assert found.vectors.of(found.rows, listed.vectors).tolist() == listed.vectors(found.rows).tolist()


def ask(retriever: Retriever, bundle: Bundle, hidden: tuple[str, ...] = (), **query: Any) -> Recommendations:
    recommender = Recommender(MemoryHistories(), InlineEngine(retriever), HiddenItems(hidden), RecentHistories(10))
    given = {"items": [("i30", 1.0), ("i70", 2.0), ("i9", -1.0)], "k": 10, **query}
    return asyncio.run(recommender.recommend(bundle, Query(**given), Trace("r")))


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"offset": 30},
        {"diversity": 0.6},
        {"diversity": 0.6, "offset": 45, "k": 30},
        {"explain": True, "explain_lists": True},
        {"explain": True, "diversity": 0.4, "slot_weights": {"image": 3.0}},
        {"fresh_share": 0.5},
        {"fresh_share": 0.5, "filter": FILTERS[2], "diversity": 0.3},
        {"exclude": [f"i{row}" for row in range(0, 1400, 2)]},
        {"filter": FILTERS[-1], "slot_weights": {"text": 0.0}},
        {"hidden": tuple(f"i{row}" for row in range(0, 1500, 3)), "filter": FILTERS[0]},
        {"items": [("i9", -1.0)]},
        {"items": [("unknown", 1.0)]},
    ],
    ids=lambda query: "+".join(query) or "plain",
)
def test_whole_answers(retriever: Retriever, listed: Bundle, query: dict[str, Any]) -> None:
    answer, expected = ask(retriever, listed, **query), ask(Exact(), listed, **query)
    assert (answer.strategy, answer.degraded, answer.unknown_items) == (expected.strategy, None, expected.unknown_items)
    for part in ("rows", "scores", "contributions", "list_contributions", "nearest"):
        found, wanted = getattr(answer, part), getattr(expected, part)
        assert (found is None) == (wanted is None), part
        assert found is None or found.tolist() == wanted.tolist(), part
    if answer.contributions is not None:
        assert answer.contributions.sum(axis=1) == pytest.approx(answer.scores, abs=1e-5)
