"""Maximal marginal relevance is that of brute force; pages of a diverse ranking join to one long ranking."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from service.recommend import diversity
from service.recommend.batching import MicroBatcher
from service.recommend.diversity import STAGES, DiversityStage, maximal_marginal_relevance, stages_of
from service.recommend.engine import InlineEngine, SearchJob, SearchResult, run_searches
from service.recommend.hidden_items import HiddenItems
from service.recommend.query import Query, Recommendations
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.request_trace import Trace
from tests.support.stores.memory_histories import MemoryHistories

ITEMS = 1500


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, small_table: ItemTable, small_encoder: Any) -> Bundle:
    """A bundle of 1,500 items, in clusters, so that diversity matters."""
    rng = np.random.default_rng(11)
    raw = {}
    for slot in small_table.layout.slots:
        centres = rng.normal(size=(40, slot.dim))
        raw[slot.name] = (centres[rng.integers(40, size=ITEMS)] + 0.4 * rng.normal(size=(ITEMS, slot.dim))).astype("f4")
    table = ItemTable(
        layout=small_table.layout,
        ids=ItemIds(f"i{row}" for row in range(ITEMS)),
        vectors=small_table.layout.stack(raw).astype(np.float16),
        popularity=np.arange(ITEMS, 0, -1, dtype=np.int64),
        metadata=pa.table({"even": [row % 2 == 0 for row in range(ITEMS)]}),
        model={"kind": "made"},
    )
    queries = EvaluationQueries(np.array([[1, 2, 4], [10, 11, -1]]), np.array([5, 12]))
    return Bundle.load(build_bundle(table, small_encoder, queries, tmp_path_factory.mktemp("bundle")))


class Approximate(InlineEngine):
    """An index that finds other rows at another depth: a tenth of them is missed, other ones each time."""

    async def search(self, bundle: Bundle, job: SearchJob) -> SearchResult:
        found = await super().search(bundle, replace(job, k=2 * job.k))
        seen = np.flatnonzero(np.random.default_rng(job.k).random(found.rows.shape[0]) > 0.1)[: job.k]
        return SearchResult(found.query, found.rows[seen], found.scores[seen])


def ask(bundle: Bundle, engine: Any = None, **query: Any) -> Recommendations:
    recommender = Recommender(MemoryHistories(), engine or InlineEngine(), HiddenItems(), RecentHistories(10))
    given = {"items": [("i3", 1.0), ("i7", 1.0)], "diversity": 0.5, **query}
    return asyncio.run(recommender.recommend(bundle, Query(**given), Trace("r")))


def pages(bundle: Bundle, k: int, until: int, engine: Any = None, **query: Any) -> list[int]:
    offsets = range(0, until, k)
    return [row for offset in offsets for row in ask(bundle, engine, k=k, offset=offset, **query).rows.tolist()]


@pytest.mark.parametrize("degree", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("k", "until"), [(20, 200), (50, 1000)])
def test_pages_are_disjoint_and_together_one_answer(bundle: Bundle, degree: float, k: int, until: int) -> None:
    paged = pages(bundle, k, until, diversity=degree)
    assert len(set(paged)) == len(paged) == until
    assert paged == ask(bundle, k=until, diversity=degree).rows.tolist()
    assert not {3, 7} & set(paged)


def test_with_what_is_excluded_and_filtered(bundle: Bundle) -> None:
    query = {"filter": {"must": [{"field": "even", "eq": True}]}, "exclude": [f"i{row}" for row in range(100, 300)]}
    paged = pages(bundle, 20, 700, **query)
    assert paged == ask(bundle, k=700, **query).rows.tolist()
    assert sorted(paged) == [row for row in range(0, ITEMS, 2) if not 100 <= row < 300]  # all that may be answered


def test_an_approximate_index_repeats_no_item(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        diversity, "STAGES", (DiversityStage(40, 200), DiversityStage(80, 400), DiversityStage(1000, 700))
    )
    paged = pages(bundle, 20, 200, Approximate())
    assert len(set(paged)) == len(paged) == 200
    assert paged == ask(bundle, Approximate(), k=200).rows.tolist()


def test_a_batch_does_not_change_how_deep_a_pool_is_searched(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    depths: list[list[int]] = []
    search = Bundle.search

    def watched(self: Bundle, queries: Any, k: int, **rest: Any) -> Any:
        depths.append([k, len(queries)])
        return search(self, queries, k, **rest)

    monkeypatch.setattr(Bundle, "search", watched)
    jobs = [SearchJob(np.array([3]), lambda encoded, _: encoded, k, None, Trace("r")) for k in (202, 250, 202, 21, 30)]
    found = run_searches(bundle, jobs)
    assert sorted(depths) == [[30, 2], [202, 2], [250, 1]]
    assert [one.rows.shape[0] for one in found] == [202, 250, 202, 21, 30]


def test_the_stages_are_what_the_contract_says() -> None:
    assert STAGES == ((40, 200), (200, 1000), (1000, 5000))
    assert [len(stages_of(length)) for length in (1, 40, 41, 200, 201, 1000)] == [1, 1, 2, 2, 3, 3]


def by_definition(
    relevance: Any, vectors: Any, degree: float, count: int, stages: Sequence[DiversityStage]
) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < count:
        pool = next(stage.pool for stage in stages if len(chosen) < stage.positions)
        values = {
            one: (1 - degree) * float(relevance[one])
            - degree * max((float(vectors[one] @ vectors[other]) for other in chosen), default=0.0)
            for one in range(pool)
            if one not in chosen
        }
        chosen.append(max(values, key=values.__getitem__))
    return chosen


@pytest.mark.parametrize("degree", [0.3, 0.8])
def test_each_stage_chooses_from_its_own_pool(degree: float) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(60, 6))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    relevance = rng.uniform(-1, 1, 60).astype(np.float32)
    stages = (DiversityStage(5, 10), DiversityStage(12, 24), DiversityStage(40, 50))
    found = maximal_marginal_relevance(relevance, vectors, degree, 30, stages).tolist()
    assert found == by_definition(relevance, vectors, degree, 30, stages)
    assert max(found[:5]) < 10 <= max(found[5:12]) < 24 <= max(found)


def test_a_batcher_gives_the_same_pages(bundle: Bundle) -> None:
    class Counted:
        def batch(self, size: int, waited_s: float) -> None: ...

        def worker_died(self) -> None: ...

    async def together() -> list[int]:
        batcher = MicroBatcher(bound=100, threads=2, metrics=Counted(), log=None)  # type: ignore[arg-type]  # no death
        recommender = Recommender(MemoryHistories(), batcher, HiddenItems(), RecentHistories(10))
        asked = [Query(items=[("i3", 1.0)], diversity=0.5, k=20, offset=offset) for offset in range(0, 200, 20)]
        answers = await asyncio.gather(*(recommender.recommend(bundle, query, Trace("r")) for query in asked))
        batcher.close()
        return [row for answer in answers for row in answer.rows.tolist()]

    assert asyncio.run(together()) == ask(bundle, items=[("i3", 1.0)], k=200).rows.tolist()


def chosen_by_definition(relevance: np.ndarray, vectors: np.ndarray, diversity: float, count: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(count, len(relevance)):
        best, best_value = -1, -np.inf
        for candidate in range(len(relevance)):
            if candidate in chosen:
                continue
            nearest = max((float(vectors[candidate] @ vectors[other]) for other in chosen), default=0.0)
            value = (1 - diversity) * float(relevance[candidate]) - diversity * nearest
            if value > best_value:
                best, best_value = candidate, value
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("diversity", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_chooses_as_the_definition_says(diversity: float) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(40, 6))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    relevance = np.sort(rng.uniform(-1, 1, 40).astype(np.float32))[::-1]
    chosen = maximal_marginal_relevance(relevance, vectors, diversity, 25)
    assert chosen.tolist() == chosen_by_definition(relevance, vectors, diversity, 25)


def test_a_duplicate_is_ranked_late() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    relevance = np.array([0.9, 0.89, 0.1], np.float32)
    assert maximal_marginal_relevance(relevance, vectors, 0.0, 3).tolist() == [0, 1, 2]
    assert maximal_marginal_relevance(relevance, vectors, 0.5, 3).tolist() == [0, 2, 1]


def test_never_gives_more_than_there_are_nor_one_twice() -> None:
    vectors = np.eye(3, dtype=np.float32)
    assert sorted(maximal_marginal_relevance(np.ones(3, np.float32), vectors, 1.0, 10).tolist()) == [0, 1, 2]
    assert maximal_marginal_relevance(np.ones(3, np.float32), vectors, 0.5, 0).tolist() == []
