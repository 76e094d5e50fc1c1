"""Vectors of histories and of listed items come from Milvus, in one call, and the file of the bundle is not read."""

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.lists.list_query import ListQuery
from index.search.scoring import slot_scores
from service.errors import RetrieverUnavailable
from service.recommend.engine import SearchJob, run_searches
from service.request_trace import Trace
from service.retrieval.guard import Guard
from service.retrieval.milvus import stored_vectors
from service.retrieval.milvus.client import MilvusAddress, MilvusClient, _vectors_of
from service.retrieval.milvus.collection_record import collection_of
from service.retrieval.milvus.milvus_retriever import MilvusRetriever
from service.retrieval.milvus.opening import VectorFetching, open_milvus
from service.stores.circuit_breaker import CircuitBreaker
from tests.service.retrieval.conftest import ITEMS, TIMEOUT_S
from tests.service.retrieval.test_retriever_contract import FILTERS, Exact, ask
from tests.support.stores.milvus_server import MilvusServer


class Unread:
    """Stands for vectors on a disk that must not be read."""

    def take(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("vectors were read from the file of the bundle")

    __getitem__ = take


def without_vectors(bundle: Bundle) -> Bundle:
    """The same bundle, whose file of vectors must not be read."""
    loaded = Bundle.load(bundle.path)
    for owner in (loaded, loaded.searcher, loaded.searcher._lists):
        if owner is not None:
            owner._vectors = Unread()  # type: ignore[assignment]
    return loaded


class Calls(list[int]):
    """The number of rows of each fetch, and of vectors that were cached."""

    def __init__(self) -> None:
        self.cached = 0

    def count(self, cached: int, fetched: int) -> None:  # type: ignore[override]
        self.cached += cached
        if fetched:
            self.append(fetched)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def fetching(pushed: MilvusServer, calls: Calls) -> Iterator[MilvusRetriever]:
    """A retriever with an empty cache."""
    how = VectorFetching(Guard(CircuitBreaker()), 1, calls.count)
    opened = open_milvus(MilvusAddress(pushed.uri), TIMEOUT_S, Guard(CircuitBreaker()), how)
    yield opened
    opened.close()


@pytest.fixture
def reading(pushed: MilvusServer) -> Iterator[MilvusRetriever]:
    """A retriever that reads vectors from the file of the bundle."""
    opened = open_milvus(MilvusAddress(pushed.uri), TIMEOUT_S, Guard(CircuitBreaker()))
    yield opened
    opened.close()


def jobs_of(bundle: Bundle, count: int) -> list[SearchJob]:
    """Jobs with histories of three items, 20 · number … 20 · number + 2, all of which the lists count."""
    histories = [np.arange(20 * number, 20 * number + 3) for number in range(1, count + 1)]
    return [
        SearchJob(rows, lambda encoded, _: encoded, 12, None, Trace("r"), ListQuery(rows), rows) for rows in histories
    ]


ANSWERS: list[dict[str, Any]] = [
    {},
    {"offset": 30},
    {"items": [("i30", 1.0), ("i70", 1.0)], "explain": True},
    {"explain": True, "explain_lists": True, "slot_weights": {"image": 3.0}},
    {"diversity": 0.6, "offset": 45, "k": 30, "explain": True},
    {"fresh_share": 0.5, "explain": True},
    {"fresh_share": 0.5, "filter": FILTERS[2], "diversity": 0.3, "explain": True},
    {"filter": {"must": [{"field": "stock", "in": [1, 2]}]}, "explain": True, "diversity": 0.5},
    {"items": [("i9", -1.0)], "explain": True},
    {"hidden": tuple(f"i{row}" for row in range(0, 1500, 3)), "explain": True},
]


@pytest.mark.parametrize("query", ANSWERS, ids=lambda query: "+".join(query) or "plain")
@pytest.mark.parametrize("kind", ["many", "listed"])
def test_answers_read_no_vector_of_the_bundle(
    fetching: MilvusRetriever, request: pytest.FixtureRequest, kind: str, query: dict[str, Any]
) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    answer, expected = ask(fetching, without_vectors(bundle), **query), ask(Exact(), bundle, **query)
    assert (answer.strategy, answer.degraded) == (expected.strategy, None)
    assert answer.rows.tolist() == expected.rows.tolist()
    assert answer.scores.tolist() == expected.scores.tolist()
    for part in ("contributions", "nearest"):
        found, wanted = getattr(answer, part), getattr(expected, part)
        assert (found is None) == (wanted is None), part
        assert found is None or found.tolist() == wanted.tolist(), part


def test_without_a_cache_the_file_of_the_bundle_is_read(reading: MilvusRetriever, many: Bundle) -> None:
    assert reading.vectors(many, np.array([1])) is None
    assert ask(reading, many).rows.tolist() == ask(Exact(), many).rows.tolist()
    with pytest.raises(AssertionError, match="were read from the file"):
        ask(reading, without_vectors(many))


def test_without_a_cache_no_vector_that_came_with_the_rows_is_read(
    reading: MilvusRetriever, listed: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, read = without_vectors(listed), list[int]()

    def vectors(rows: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
        read.extend(rows.reshape(-1).tolist())
        return listed.vectors(rows)

    monkeypatch.setattr(bundle, "vectors", vectors)
    queries, histories = listed.encode([np.array([5, 9])]), [ListQuery(np.array([5, 9]))]
    found = reading.search(bundle, queries, 10, histories=histories)
    assert found.rows.tolist() == listed.search(queries, 10, histories=histories).rows.tolist()
    assert found.vectors is not None
    assert read
    assert not found.vectors.has(np.array(read)).any()


def test_vectors_are_those_of_the_bundle_to_the_last_bit(fetching: MilvusRetriever, many: Bundle, calls: Calls) -> None:
    rows = np.random.default_rng(3).permutation(ITEMS)
    expected = many.vectors(rows).tobytes()
    assert many.indexed[rows].sum() == ITEMS - 1
    found = fetching.vectors(many, np.concatenate((rows, rows[:5])))
    assert found is not None
    assert found.of(rows, many.vectors).tobytes() == expected
    assert list(calls) == [ITEMS - 1]  # without row 3, which has no slot
    again = fetching.vectors(many, rows)
    assert again is not None
    assert again.of(rows, many.vectors).tobytes() == expected


def test_the_histories_of_a_batch_are_one_call(fetching: MilvusRetriever, many: Bundle, calls: Calls) -> None:
    jobs = jobs_of(many, 16)
    found = run_searches(many, jobs, fetching)
    assert (list(calls), calls.cached) == ([48], 0)
    run_searches(many, jobs[4:6], fetching)
    assert (list(calls), calls.cached) == ([48], 6)
    run_searches(many, [*jobs[:2], SearchJob(np.array([1000]), jobs[0].query, 3, None, Trace("r"))], fetching)
    assert (list(calls), calls.cached) == ([48, 1], 12)
    for result, expected in zip(found, run_searches(many, jobs), strict=True):
        assert result.query.tolist() == expected.query.tolist()


def test_a_fetch_of_many_bytes_is_several_calls(
    fetching: MilvusRetriever, many: Bundle, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_vectors, "MOST_BYTES", 40 * 4 * many.layout.dim)
    asked: list[int] = []
    real = MilvusClient.vectors

    def counted(self: MilvusClient, collection: str, rows: Any, dim: int) -> Any:
        asked.append(rows.size)
        return real(self, collection, rows, dim)

    monkeypatch.setattr(MilvusClient, "vectors", counted)
    rows = np.arange(100, 200)
    found = fetching.vectors(many, rows)
    assert asked == [40, 40, 20]
    assert found is not None
    assert found.of(rows, many.vectors).tobytes() == many.vectors(rows).tobytes()


def test_listed_items_are_at_most_two_calls_of_a_batch(fetching: MilvusRetriever, listed: Bundle, calls: Calls) -> None:
    bundle, jobs = without_vectors(listed), jobs_of(listed, 5)
    found = run_searches(bundle, jobs, fetching)
    assert 2 <= len(calls) <= 3
    for job, result in zip(jobs, found, strict=True):
        assert job.lists is not None
        exact = listed.exact(result.query[None], job.k, histories=[job.lists])
        assert result.rows.tolist() == exact.rows[0].tolist()
        assert result.scores.tolist() == exact.scores[0].tolist()
        vectors = result.vectors
        assert vectors is not None
        assert vectors.has(result.rows).all()
        assert job.history is not None
        assert vectors.has(job.history).all()
        scores = slot_scores(result.query[None], vectors.of(result.rows, bundle.vectors)[None], listed.layout)
        assert np.isfinite(scores).all()
    seen = len(calls)
    run_searches(bundle, jobs, fetching)
    assert len(calls) == seen


def test_a_cache_is_freed_with_its_bundle(fetching: MilvusRetriever, many: Bundle) -> None:
    stored = fetching._stored
    assert stored is not None
    bundle = Bundle.load(many.path)
    fetching.vectors(bundle, np.array([1, 2]))
    fetching.vectors(many, np.array([1, 2]))
    assert len(stored._caches) == 2
    del bundle
    gc.collect()
    assert list(stored._caches) == [many]


def test_a_cache_is_no_larger_than_the_catalogue(fetching: MilvusRetriever, many: Bundle) -> None:
    fetching.vectors(many, np.array([1]))
    assert fetching._stored is not None
    assert fetching._stored._caches[many].capacity == ITEMS - 1


def test_a_row_that_milvus_lacks_is_an_outage_of_that_answer(server: MilvusServer, many: Bundle) -> None:
    from service.retrieval.milvus.push import PushOptions, push

    client = MilvusClient(MilvusAddress(server.uri), TIMEOUT_S)
    push(many, client, PushOptions())
    client._call("delete", collection_name=collection_of(many.id), ids=[30])
    client.close()
    how = VectorFetching(Guard(CircuitBreaker()), 1)
    opened = open_milvus(MilvusAddress(server.uri), TIMEOUT_S, Guard(CircuitBreaker()), how)
    with pytest.raises(RetrieverUnavailable, match="must have the vectors of 2 rows, got 1; push the bundle again"):
        opened.vectors(many, np.array([30, 31]))
    answer = ask(opened, many)
    assert (answer.strategy, answer.degraded) == ("popular", "retrieval_unavailable")
    opened.close()


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [{"row": 1, "vector": [1.0, 2.0]}],
        [{"row": 1, "vector": [1.0, 2.0]}, {"row": 1, "vector": [1.0, 2.0]}],
        [{"row": 1, "vector": [1.0, 2.0]}, {"row": 7, "vector": [1.0, 2.0]}],
        [{"row": 1, "vector": [1.0, 2.0]}, {"row": 3, "vector": [1.0]}],
        [{"row": 1, "vector": [1.0, 2.0]}, {"row": 3, "vector": [1.0, float("nan")]}],
        [{"row": 1, "vector": [1.0, 2.0, 3.0]}, {"row": 3, "vector": [1.0, 2.0, 3.0]}],
        [{"row": 1}, {"row": 3}],
        [{"vector": [1.0, 2.0]}],
    ],
    ids=str,
)
def test_answers_that_do_not_fit_are_refused(answer: list[dict[str, Any]]) -> None:
    with pytest.raises((ValueError, LookupError)):
        _vectors_of(answer, np.array([3, 1]), 2)


def test_an_answer_is_put_in_the_order_of_the_rows() -> None:
    answer = [{"row": row, "vector": [row, row / 2]} for row in (5, 1, 3)]
    assert _vectors_of(answer, np.array([3, 5, 1]), 2).tolist() == [[3, 1.5], [5, 2.5], [1, 0.5]]
