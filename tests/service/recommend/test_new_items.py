"""Places kept for new items, against a definition in plain Python."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.items.item_table import ItemTable
from service.recommend.diversity import DiversityStage, maximal_marginal_relevance
from service.recommend.engine import InlineEngine, SearchJob, SearchResult
from service.recommend.hidden_items import HiddenItems
from service.recommend.new_items import NewItems, places_for_new
from service.recommend.online_recall import SampledAnswer, _Check, recall_of
from service.recommend.query import Query, Recommendations
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.request_trace import Trace
from tests.support.listed_bundles import bundle_with_new_items, random_lists, with_lists
from tests.support.stores.memory_histories import MemoryHistories

NEW = [6, 13, 20, 27, 34, 41, 48, 55]
HISTORY = [("i10", 1.0), ("i11", 1.0), ("i30", 1.0)]


@pytest.fixture(scope="module", params=["slots", "lists"])
def bundle(
    request: pytest.FixtureRequest, small_table: ItemTable, small_encoder: Path, tmp_path_factory: Any
) -> Bundle:
    """Eight of 60 items are new, with short behaviour vectors."""
    out = tmp_path_factory.mktemp("new-items")
    built = bundle_with_new_items(small_table, small_encoder, out, NEW, length=0.05)
    if request.param == "lists":
        built = with_lists(built, random_lists(60, seed=4, neighbours=12), out / "listed")
    return Bundle.load(built)


class Watching(InlineEngine):
    """Records what is searched for."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[SearchJob] = []

    async def search(self, bundle: Bundle, job: SearchJob) -> SearchResult:
        self.jobs.append(job)
        return await super().search(bundle, job)


def ask(
    bundle: Bundle, *, engine: Any = None, hidden: tuple[str, ...] = (), similar: bool = False, **query: Any
) -> Recommendations:
    recommender = Recommender(
        MemoryHistories(),
        engine or InlineEngine(),
        HiddenItems(hidden),
        RecentHistories(10),
        query.pop("observe", _none),
    )
    call = recommender.similar if similar else recommender.recommend
    return asyncio.run(call(bundle, Query(**{"items": HISTORY, **query}), Trace("r")))


def _none(*_: object) -> None:
    pass


def by_definition(ranked: list[int], share: float, length: int) -> list[int]:
    """The first places: the best known items, then the best new ones, in the order of the whole ranking."""
    wanted = int(share * length + 1e-9)
    new, known = [row for row in ranked if row in NEW], [row for row in ranked if row not in NEW]
    natural = sum(row in NEW for row in ranked[:length])
    kept = min(max(wanted, natural), len(new))
    chosen = {*new[:kept], *known[: length - kept]}
    return [row for row in ranked if row in chosen]


@pytest.mark.parametrize(
    ("share", "length", "places"),
    [(0, 10, 0), (0.1, 9, 0), (0.1, 10, 1), (0.1, 19, 1), (0.1, 30, 3), (0.29, 100, 29), (1, 7, 7), (0.7, 10, 7)],
)
def test_the_number_of_places_is_rounded_down(share: float, length: int, places: int) -> None:
    assert places_for_new(share, length) == places


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 4, 10, 20])
def test_the_best_new_items_take_the_last_places(bundle: Bundle, share: float, k: int) -> None:
    ranked = ask(bundle, k=60).rows.tolist()
    answer = ask(bundle, k=k, fresh_share=share, explain=True)
    assert answer.rows.tolist() == by_definition(ranked, share, k)
    assert (np.diff(answer.scores) <= 0).all()
    assert sum(row in NEW for row in answer.rows.tolist()) >= min(int(share * k + 1e-9), len(NEW))
    np.testing.assert_allclose(answer.contributions.sum(axis=1), answer.scores, atol=1e-5)
    scores = dict(zip(ranked, ask(bundle, k=60).scores.tolist(), strict=True))
    assert answer.scores.tolist() == [scores[row] for row in answer.rows.tolist()]


def test_items_near_the_top_get_no_further_places(bundle: Bundle) -> None:
    only_new = {"must": [{"field": "price", "in": [row + 0.5 for row in (6, 13, 20, 21, 22)]}]}
    found = ask(bundle, k=5, filter=only_new)
    watching = Watching()
    assert ask(bundle, engine=watching, k=5, filter=only_new, fresh_share=0.5).rows.tolist() == found.rows.tolist()
    assert len(watching.jobs) == 1


def test_new_items_are_searched_for_only_where_places_are_kept(bundle: Bundle) -> None:
    watching = Watching()
    ask(bundle, engine=watching, k=10)
    ask(bundle, engine=watching, k=9, fresh_share=0.1)
    assert [job.k for job in watching.jobs] == [13, 12]
    ask(bundle, engine=watching, k=10, fresh_share=0.5)
    first, fresh = watching.jobs[2:]
    assert (first.k, first.allowed, fresh.k, fresh.history) == (13, None, 5, None)
    assert np.flatnonzero(fresh.allowed.mask).tolist() == NEW


@pytest.mark.parametrize("diversity", [0.0, 0.5])
@pytest.mark.parametrize("cuts", [[0, 5, 10, 15, 20, 30], [0, 1, 3, 17, 18, 40], [0, 50, 57]])
def test_pages_repeat_nothing_and_join_to_one_answer(bundle: Bundle, diversity: float, cuts: list[int]) -> None:
    sent = {"fresh_share": 0.2, "diversity": diversity}
    whole = ask(bundle, k=cuts[-1], **sent).rows.tolist()
    ranked = ask(bundle, k=60).rows.tolist()
    so_far: list[int] = []
    for start, end in pairwise(cuts):
        page = ask(bundle, offset=start, k=end - start, **sent)
        so_far += page.rows.tolist()
        if diversity == 0:
            assert (np.diff(page.scores) <= 0).all()
            assert sorted(so_far) == sorted(by_definition(ranked, 0.2, end))
        else:
            assert so_far == whole[: len(so_far)]
    assert len(set(so_far)) == len(so_far)
    assert sorted(so_far) == sorted(whole)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_a_ranking_from_its_start_begins_as_any_longer_one(bundle: Bundle, diversity: float, share: float) -> None:
    sent = {"fresh_share": share, "diversity": diversity, "from_start": True}
    whole, ranked = ask(bundle, k=57, **sent).rows.tolist(), ask(bundle, k=60).rows.tolist()
    for length in range(1, 57):
        for offset in {0, length // 2, length - 1}:
            found = ask(bundle, offset=offset, k=length - offset, **sent)
            assert found.rows.tolist() == whole[:length]
        if diversity == 0:
            assert sorted(whole[:length]) == sorted(by_definition(ranked, share, length))


def test_filters_exclusions_and_hidden_items_hold_for_new_items(bundle: Bundle) -> None:
    shoes = {"must": [{"field": "category", "in": ["shoes"]}]}
    ranked = [row for row in ask(bundle, k=60).rows.tolist() if row % 3 == 0]
    assert ask(bundle, k=10, filter=shoes, fresh_share=0.2).rows.tolist() == by_definition(ranked, 0.2, 10)
    for gone in ({"exclude": ["i6", "i48"]}, {"hidden": ("i6", "i48")}):
        left = [row for row in ranked if row not in (6, 48)]
        assert ask(bundle, k=10, filter=shoes, fresh_share=0.2, **gone).rows.tolist() == by_definition(left, 0.2, 10)
    seen = [("i13", 1.0), ("i41", 1.0), ("i10", 1.0)]
    ranked = ask(bundle, items=seen, k=60).rows.tolist()
    assert not {13, 41} & set(ranked)
    assert ask(bundle, items=seen, k=10, fresh_share=0.3).rows.tolist() == by_definition(ranked, 0.3, 10)


def test_similar_items_and_weighted_queries(bundle: Bundle) -> None:
    for sent in (
        {"similar": True, "items": [("i8", 1.0)]},
        {"slot_weights": {"text": 0.0, "image": 3.0}},
        {"items": [("i10", 1.0), ("i11", -2.0)]},
    ):
        ranked = ask(bundle, k=60, **sent).rows.tolist()
        assert ask(bundle, k=10, fresh_share=0.3, **sent).rows.tolist() == by_definition(ranked, 0.3, 10)


def test_popular_items_are_left_as_they_are(bundle: Bundle) -> None:
    popular = ask(bundle, items=[], k=20)
    assert popular.strategy == "popular"
    assert ask(bundle, items=[], k=20, fresh_share=0.5).rows.tolist() == popular.rows.tolist()


def test_a_deadline_holds_for_the_search_for_new_items(bundle: Bundle) -> None:
    class SlowForNew(InlineEngine):
        async def search(self, bundle: Bundle, job: SearchJob) -> SearchResult:
            if job.allowed is not None:
                await asyncio.sleep(60)
            return await super().search(bundle, job)

    answer = ask(bundle, engine=SlowForNew(), k=10, fresh_share=0.5, deadline_ms=50)
    assert (answer.strategy, answer.degraded) == ("popular", "deadline")
    assert ask(bundle, engine=SlowForNew(), k=10, deadline_ms=5000).strategy == "sequence"


def test_live_recall_counts_the_search_for_new_items(bundle: Bundle) -> None:
    seen: list[Any] = []
    answer = ask(bundle, k=10, fresh_share=0.5, observe=lambda *given: seen.append(given))
    ((_, _, searches, observed),) = seen
    assert observed is answer
    sample = SampledAnswer(bundle, searches, answer.rows, filtered=False, plain=True)
    checks = [_Check.of(sample, search) for search in searches]
    assert [check.k for check in checks] == [13, 5]
    for check in checks:
        truth, _ = check.run()
        assert truth.size == check.k
        assert recall_of(check.scores, truth) == 1.0


def test_masks_of_new_items_are_kept(bundle: Bundle) -> None:
    new = NewItems()
    shoes = bundle.allowed({"must": [{"field": "category", "in": ["shoes"]}], "must_not": []})
    assert new.among(bundle, None) is new.among(bundle, None)
    assert new.among(bundle, shoes) is new.among(bundle, shoes)
    assert np.flatnonzero(new.among(bundle, shoes).mask).tolist() == [6, 27, 48]
    others = [bundle.allowed({"must": [{"field": "price", "gte": bound}], "must_not": []}) for bound in range(9)]
    for other in others:
        new.among(bundle, other)
    assert len(new._among) <= 8


def test_a_bundle_without_new_items_keeps_no_place(small_bundle: Path) -> None:
    plain, watching = Bundle.load(small_bundle), Watching()
    ranked = ask(plain, k=20).rows.tolist()
    assert ask(plain, engine=watching, k=20, fresh_share=1.0).rows.tolist() == ranked
    assert len(watching.jobs) == 1


def test_diverse_positions_for_new_items_by_hand() -> None:
    relevance = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    vectors = np.eye(6, dtype=np.float32)
    new = np.array([False, False, False, False, True, True])
    stages = (DiversityStage(6, 6),)
    order = maximal_marginal_relevance(relevance, vectors, 0.1, 6, stages, new, 0.5)
    assert order.tolist() == [0, 4, 1, 5, 2, 3]
    assert maximal_marginal_relevance(relevance, vectors, 0.1, 6, stages, new).tolist() == [0, 1, 2, 3, 4, 5]
