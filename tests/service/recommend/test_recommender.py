"""The recommender against plain numpy on the same item table: items, order and scores."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.errors import EncoderError, FilterError
from service.errors import RuleBroken
from service.recommend import resolved_query
from service.recommend.engine import InlineEngine, SearchJob, SearchResult, run_searches
from service.recommend.hidden_items import HiddenItems
from service.recommend.query import Query, Recommendations
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.request_trace import Trace
from service.stores.protocols import Event, HistoryEntry
from tests.support.stores.memory_histories import MemoryHistories


def recommending(histories: MemoryHistories, engine: InlineEngine | None = None) -> Recommender:
    return Recommender(histories, engine or InlineEngine(), HiddenItems(), RecentHistories(10))


def ask(bundle: Bundle, stored: Sequence[str] = (), *, similar: bool = False, **query: Any) -> Recommendations:
    async def run() -> Recommendations:
        histories = MemoryHistories()
        await histories.append([Event("u", item, place) for place, item in enumerate(stored)])
        asked = recommending(histories)
        call = asked.similar if similar else asked.recommend
        return await call(bundle, Query(**{"user_id": "u", **query}), Trace("r"))

    return asyncio.run(run())


def items(bundle: Bundle, answer: Recommendations) -> list[tuple[str, float]]:
    return [
        (bundle.ids.id(row), score) for row, score in zip(answer.rows.tolist(), answer.scores.tolist(), strict=True)
    ]


def same(found: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> None:
    assert [item for item, _ in found] == [item for item, _ in wanted]
    assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-5)


def plain(*names: str) -> list[tuple[str, float]]:
    return [(name, 1.0) for name in names]


def test_a_stored_history_gives_what_numpy_gives(bundle: Bundle, oracle: Any) -> None:
    history = ["i10", "i11", "i12"]
    answer = ask(bundle, history, k=10)
    same(items(bundle, answer), oracle.best(oracle.encoded(history), 10, set(history)))
    assert (answer.strategy, answer.degraded, answer.history_used, answer.unknown_items) == ("sequence", None, 3, [])


def test_given_items_come_after_the_stored_history(bundle: Bundle, oracle: Any) -> None:
    answer = ask(bundle, ["i10", "i11"], items=plain("i1", "i2"), k=10)
    history = ["i10", "i11", "i1", "i2"]
    same(items(bundle, answer), oracle.best(oracle.encoded(history), 10, set(history)))


def test_without_a_user_only_given_items_count(bundle: Bundle, oracle: Any) -> None:
    answer = ask(bundle, ["i10"], user_id=None, items=plain("i2", "i1"), k=5)
    same(items(bundle, answer), oracle.best(oracle.encoded(["i2", "i1"]), 5, {"i1", "i2"}))


def test_the_newest_five_shape_the_query_and_the_whole_history_is_excluded(bundle: Bundle, oracle: Any) -> None:
    history = [f"i{row}" for row in (40, 41, 42, 43, 44, 45, 46, 47)]
    answer = ask(bundle, history, k=60)
    same(items(bundle, answer), oracle.best(oracle.encoded(history), 60, set(history)))
    assert answer.history_used == 5


def test_every_item_that_can_be_found_is_found(bundle: Bundle) -> None:
    answer = ask(bundle, items=plain("i1"), k=1000)
    assert len(answer.rows) == 60 - 1 - 1  # all but the given one and the one without a slot
    assert np.all(np.diff(answer.scores) <= 0)


@pytest.mark.parametrize("page", [1, 7, 20])
def test_pages_put_together_are_the_whole(bundle: Bundle, page: int) -> None:
    whole = items(bundle, ask(bundle, ["i1", "i2"], k=56))
    paged = [
        item
        for offset in range(0, 56, page)
        for item in items(bundle, ask(bundle, ["i1", "i2"], k=page, offset=offset))
    ]
    same(paged[:56], whole)
    assert items(bundle, ask(bundle, ["i1", "i2"], k=5, offset=500)) == []


def test_exclusions(bundle: Bundle, oracle: Any) -> None:
    query = oracle.encoded(["i1", "i2"])
    best = [item for item, _ in oracle.best(query, 3, {"i1", "i2"})]
    answer = ask(bundle, ["i1", "i2"], k=5, exclude=[*best, "never heard of"])
    same(items(bundle, answer), oracle.best(query, 5, {"i1", "i2", *best}))
    answer = ask(bundle, ["i1"], items=plain("i2"), k=5, exclude_seen=False)
    same(items(bundle, answer), oracle.best(query, 5, set()))


def test_slot_weights_multiply_the_query(bundle: Bundle, oracle: Any) -> None:
    query = oracle.encoded(["i1", "i2"]) * np.repeat([1.0, 2.5, 0.0], [6, 4, 2])
    weights = {"image": 2.5, "behaviour": 0.0}
    answer = ask(bundle, ["i1", "i2"], k=10, slot_weights=weights, explain=True)
    same(items(bundle, answer), oracle.best(query, 10, {"i1", "i2"}, slot_weights=weights))
    assert answer.contributions is not None
    assert np.all(answer.contributions[:, 2] == 0)


def test_contributions_sum_to_the_score_and_are_zero_for_an_absent_slot(bundle: Bundle, oracle: Any) -> None:
    answer = ask(bundle, ["i1", "i2"], k=58, explain=True, slot_weights={"text": 3.0})
    assert answer.contributions is not None
    assert answer.contributions.sum(axis=1) == pytest.approx(answer.scores, abs=1e-5)
    without_picture = np.isin(answer.rows, np.arange(0, 60, 7))
    assert without_picture.any()
    assert np.all((answer.contributions[:, 1] == 0) == without_picture)
    row = int(answer.rows[0])
    by_hand = oracle.vectors[row][:6] @ oracle.encoded(["i1", "i2"])[:6] * 3.0
    assert answer.contributions[0, 0] == pytest.approx(by_hand, abs=1e-5)


def test_the_nearest_history_item_is_the_positive_one_with_the_largest_inner_product(
    bundle: Bundle, oracle: Any
) -> None:
    answer = ask(
        bundle, ["i1", "i2"], items=[("i4", 1.0), ("i6", -1.0)], k=20, explain=True, slot_weights={"text": 0.0}
    )
    positive = [1, 2, 4]
    similarity = oracle.vectors[answer.rows] @ oracle.vectors[positive].T
    assert answer.nearest is not None
    assert answer.nearest.tolist() == [positive[position] for position in similarity.argmax(axis=1)]


def test_weights_steer_the_query(bundle: Bundle, oracle: Any) -> None:
    # docs/method.md, point 5: e on i1 and i2 alone, n = 3 items of non-zero weight, i5 only excluded
    x = {name: oracle.vectors[oracle.row(name)] for name in ("i1", "i2", "i4")}
    e = oracle.encoded(["i1", "i2"])
    query = e + np.linalg.norm(e) * ((2.0 - 1.0) * x["i1"] + (0.5 - 1.0) * x["i2"] - 1.5 * x["i4"]) / 3
    answer = ask(bundle, items=[("i1", 2.0), ("i2", 0.5), ("i4", -1.5), ("i5", 0.0)], k=10)
    same(items(bundle, answer), oracle.best(query, 10, {"i1", "i2", "i4", "i5"}))
    assert answer.history_used == 3


def test_weights_of_one_are_the_plain_query(bundle: Bundle) -> None:
    with_weights = ask(bundle, items=[("i1", 1.0), ("i2", 1.0)], k=10)
    without = ask(bundle, ["i1", "i2"], k=10)
    assert np.array_equal(with_weights.rows, without.rows)
    assert np.array_equal(with_weights.scores, without.scores)


def test_a_weight_of_zero_excludes_even_where_seen_items_may_come(bundle: Bundle) -> None:
    answer = ask(bundle, items=[("i1", 1.0), ("i2", 0.0)], k=60, exclude_seen=False)
    found = [item for item, _ in items(bundle, answer)]
    assert "i1" in found
    assert "i2" not in found


def test_a_history_without_positive_items_is_answered_by_similarity(bundle: Bundle, oracle: Any) -> None:
    x = {name: oracle.vectors[oracle.row(name)] for name in ("i1", "i2")}
    answer = ask(bundle, items=[("i1", -1.0), ("i2", -3.0)], k=10, explain=True)
    same(items(bundle, answer), oracle.best(-(x["i1"] + 3 * x["i2"]) / 4, 10, {"i1", "i2"}))
    assert answer.strategy == "similar"
    assert answer.nearest is None


def test_similar_is_the_weighted_mean_of_all_items_given(bundle: Bundle, oracle: Any) -> None:
    names = [f"i{row}" for row in range(20, 30)]
    answer = ask(bundle, ["i50"], similar=True, items=[*plain(*names), ("i1", -2.0)], k=10)
    rows = [oracle.row(name) for name in names]
    query = (oracle.vectors[rows].sum(axis=0) - 2 * oracle.vectors[1]) / 12
    same(items(bundle, answer), oracle.best(query, 10, {*names, "i1"}))
    assert (answer.strategy, answer.history_used) == ("similar", 11)


def test_an_item_without_a_slot_shapes_nothing_but_is_excluded(bundle: Bundle, oracle: Any) -> None:
    answer = ask(bundle, ["i1", "i3"], k=10)
    same(items(bundle, answer), oracle.best(oracle.encoded(["i1"]), 10, {"i1", "i3"}))
    assert answer.history_used == 1
    assert answer.unknown_items == []


@pytest.mark.parametrize("stored", [[], ["never heard of"], ["i3"]])
def test_nothing_to_go_by_is_answered_by_what_is_popular(bundle: Bundle, oracle: Any, stored: list[str]) -> None:
    answer = ask(bundle, stored, k=10, explain=True)
    same(items(bundle, answer), oracle.popular(10, set(stored) & {"i3"}))
    assert (answer.strategy, answer.history_used) == ("popular", 0)
    assert answer.contributions is None
    assert answer.nearest is None


def test_popular_pages_and_ends(bundle: Bundle, oracle: Any) -> None:
    same(items(bundle, ask(bundle, k=7, offset=3)), oracle.popular(10)[3:])
    same(items(bundle, ask(bundle, k=900, offset=50)), oracle.popular(60)[50:])
    shares = ask(bundle, k=1000).scores
    assert len(shares) == 60
    assert shares.sum() == pytest.approx(1.0, abs=1e-5)


def test_unknown_items_are_named_once_wherever_they_were(bundle: Bundle, oracle: Any) -> None:
    answer = ask(bundle, ["old", "i1", "old"], items=plain("i2", "new"), k=3)
    assert answer.unknown_items == ["old", "new"]
    same(items(bundle, answer), oracle.best(oracle.encoded(["i1", "i2"]), 3, {"i1", "i2"}))


def test_unknown_items_can_be_refused_but_not_for_what_is_stored(bundle: Bundle) -> None:
    with pytest.raises(
        RuleBroken, match='items must be in the bundle, as unknown_items is error; received "new"'
    ) as no:
        ask(bundle, ["old"], items=plain("i1", "new", "newer"), refuse_unknown=True)
    assert [violation.received for violation in no.value.violations] == ['"new"', '"newer"']
    assert ask(bundle, ["old", "i1"], items=plain("i2"), refuse_unknown=True).unknown_items == ["old"]


def test_a_filter_is_applied_before_the_best_are_taken(bundle: Bundle, oracle: Any) -> None:
    allowed = np.array([row % 3 == 0 and row + 0.5 >= 20 for row in range(60)])
    clauses = {"must": [{"field": "category", "eq": "shoes"}, {"field": "price", "gte": 20}], "must_not": []}
    answer = ask(bundle, ["i30", "i2"], k=10, filter=clauses, exclude=["i33"])
    same(items(bundle, answer), oracle.best(oracle.encoded(["i30", "i2"]), 10, {"i30", "i2", "i33"}, allowed))
    assert answer.strategy == "sequence"


def test_a_filter_that_only_leaves_items_without_a_slot_is_answered_by_what_is_popular(bundle: Bundle) -> None:
    clauses = {"must": [{"field": "title", "eq": "Item number 3"}]}
    answer = ask(bundle, ["i1"], k=10, filter=clauses)
    assert [item for item, _ in items(bundle, answer)] == ["i3"]
    assert answer.strategy == "popular"


def test_a_filter_that_leaves_nothing_is_answered_with_nothing(bundle: Bundle) -> None:
    answer = ask(bundle, ["i1"], k=10, filter={"must": [{"field": "price", "lt": 0}]})
    assert items(bundle, answer) == []


def test_popular_honours_filter_and_exclusions(bundle: Bundle, oracle: Any) -> None:
    allowed = np.array([row % 3 == 0 for row in range(60)])
    clauses = {"must": [{"field": "category", "eq": "shoes"}]}
    answer = ask(bundle, k=5, filter=clauses, exclude=["i3", "i6"])
    same(items(bundle, answer), oracle.popular(5, {"i3", "i6"}, allowed))


def test_wrong_slots_and_fields_are_refused(bundle: Bundle) -> None:
    with pytest.raises(RuleBroken, match=r"slot_weights.sound must be one of the slots text, image, behaviour"):
        ask(bundle, slot_weights={"sound": 1.0})
    with pytest.raises(RuleBroken, match="slot_weights must not all be 0"):
        ask(bundle, slot_weights={"text": 0.0, "image": 0.0, "behaviour": 0.0})
    with pytest.raises(FilterError, match="unknown field 'colour'"):
        ask(bundle, filter={"must": [{"field": "colour", "eq": "red"}]})


def test_diversity_orders_one_pool_and_pages_slice_it(bundle: Bundle, oracle: Any) -> None:
    whole = ask(bundle, ["i1", "i2"], k=20, diversity=0.7)
    by_score = dict(oracle.best(oracle.encoded(["i1", "i2"]), 60, {"i1", "i2"}))
    found = items(bundle, whole)
    assert [score for _, score in found] == pytest.approx([by_score[item] for item, _ in found], abs=1e-5)
    assert np.any(np.diff(whole.scores) > 0)  # no longer by score alone
    paged = [
        item
        for offset in (0, 5, 10, 15)
        for item in items(bundle, ask(bundle, ["i1", "i2"], k=5, offset=offset, diversity=0.7))
    ]
    same(paged, found)


def test_diversity_is_mmr_of_cosines(bundle: Bundle, oracle: Any) -> None:
    query, vectors = oracle.encoded(["i1", "i2"]), oracle.vectors
    candidates = [oracle.row(item) for item, _ in oracle.best(query, 60, {"i1", "i2"})]
    chosen: list[int] = []
    while len(chosen) < 15:
        chosen.append(
            max(
                (row for row in candidates if row not in chosen),
                key=lambda row: (
                    0.4 * float(vectors[row] @ query / np.linalg.norm(query))
                    - 0.6 * max((float(vectors[row] @ vectors[other]) for other in chosen), default=0.0)
                ),
            )
        )
    assert ask(bundle, ["i1", "i2"], k=15, diversity=0.6).rows.tolist() == chosen


def test_diversity_makes_a_list_less_alike(bundle: Bundle) -> None:
    def alikeness(diversity: float) -> float:
        vectors = bundle.vectors(ask(bundle, ["i1", "i2"], k=10, diversity=diversity).rows)
        return float((vectors @ vectors.T)[np.triu_indices(10, 1)].mean())

    assert alikeness(1.0) < alikeness(0.0)


def test_a_large_pool_is_ordered_the_same_in_a_thread(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    inline = ask(bundle, ["i1", "i2"], k=20, diversity=0.7)
    monkeypatch.setattr(resolved_query, "_INLINE_POOL", 10)
    in_thread = ask(bundle, ["i1", "i2"], k=20, diversity=0.7)
    assert np.array_equal(in_thread.rows, inline.rows)


def test_a_query_that_is_zero_says_nothing(bundle: Bundle) -> None:
    answer = ask(bundle, items=[("i1", 1.0), ("i1", -1.0)], similar=True, k=3)
    assert answer.strategy == "popular"
    assert ask(bundle, ["i0"], slot_weights={"text": 0.0, "behaviour": 0.0}, k=3).strategy == "popular"  # no picture


@pytest.mark.parametrize("weight", [1e-300, 1e-30, 10.0])
def test_weights_of_any_size_give_finite_scores(bundle: Bundle, weight: float) -> None:
    answer = ask(bundle, items=[("i1", weight)], k=5, diversity=0.5, slot_weights={"text": weight})
    assert np.isfinite(answer.scores).all()


class Slow(MemoryHistories):
    async def entries(self, owner: str) -> list[HistoryEntry]:
        await asyncio.sleep(5.0)
        return await super().entries(owner)


class Failing(InlineEngine):
    """An engine whose encoder fails; similar items need no encoder."""

    async def search(self, bundle: Bundle, job: SearchJob) -> SearchResult:
        if job.history is not None:
            raise EncoderError("the encoder gave a query that is not finite")
        return await super().search(bundle, job)


def run(asked: Recommender, bundle: Bundle, **query: Any) -> Recommendations:
    return asyncio.run(asked.recommend(bundle, Query(**query), Trace("r")))


def test_histories_that_cannot_be_had_degrade_the_answer(bundle: Bundle, oracle: Any) -> None:
    down = MemoryHistories()
    down.available = False
    asked = recommending(down)
    answer = run(asked, bundle, user_id="u", k=3)
    same(items(bundle, answer), oracle.popular(3))
    assert (answer.strategy, answer.degraded) == ("popular", "history_unavailable")
    answer = run(asked, bundle, user_id="u", items=plain("i1"), k=3)
    same(items(bundle, answer), oracle.best(oracle.encoded(["i1"]), 3, {"i1"}))
    assert (answer.strategy, answer.degraded) == ("sequence", "history_unavailable")
    assert run(asked, bundle, items=plain("i1")).degraded is None


def test_a_deadline_that_passes_is_answered_by_what_is_popular(bundle: Bundle, oracle: Any) -> None:
    answer = run(recommending(Slow()), bundle, user_id="u", items=plain("i1"), k=3, deadline_ms=20.0)
    same(items(bundle, answer), oracle.popular(3, {"i1"}))
    assert (answer.strategy, answer.degraded) == ("popular", "deadline")
    late = Trace("r")
    late.started -= 1.0
    query = Query(items=plain("i1"), k=3, deadline_ms=900.0)
    answer = asyncio.run(recommending(MemoryHistories()).recommend(bundle, query, late))
    assert (answer.strategy, answer.degraded) == ("popular", "deadline")


def test_a_deadline_that_holds_changes_nothing(bundle: Bundle) -> None:
    answer = ask(bundle, ["i1"], deadline_ms=60_000.0)
    assert (answer.strategy, answer.degraded) == ("sequence", None)


def test_the_first_reason_met_is_given(bundle: Bundle) -> None:
    down = MemoryHistories()
    down.available = False
    late = Trace("r")
    late.started -= 1.0
    query = Query(user_id="u", items=plain("i1"), deadline_ms=900.0)
    answer = asyncio.run(recommending(down).recommend(bundle, query, late))
    assert (answer.strategy, answer.degraded) == ("popular", "history_unavailable")


def test_an_encoder_that_fails_falls_back_to_similarity(bundle: Bundle, oracle: Any) -> None:
    answer = run(recommending(MemoryHistories(), Failing()), bundle, items=plain("i1", "i2"), k=3)
    same(items(bundle, answer), oracle.best(oracle.vectors[[1, 2]].mean(axis=0), 3, {"i1", "i2"}))
    assert answer.strategy == "similar"
    assert answer.error == "the encoder gave a query that is not finite"


def test_a_batch_gives_what_each_search_gives_alone(bundle: Bundle) -> None:
    def job(history: list[int] | None, k: int, allowed: np.ndarray | None) -> SearchJob:
        rows = None if history is None else np.array(history, dtype=np.int64)
        vector = bundle.vectors(np.array([8]))[0]
        return SearchJob(rows, lambda encoded, _: encoded if history else vector, k, allowed, Trace("r"))

    some = np.arange(60) % 2 == 0
    jobs = [
        job([1, 2], 5, None),
        job(None, 7, None),
        job([4], 60, some),
        job([5, 6, 8, 9, 10, 11, 12], 3, some),
        job(None, 2, np.arange(60) < 10),
    ]
    for together, one in zip(run_searches(bundle, jobs), jobs, strict=True):
        (alone,) = run_searches(bundle, [one])
        assert np.array_equal(together.rows, alone.rows)
        assert together.scores == pytest.approx(alone.scores, abs=1e-6)
        assert together.rows.shape[0] <= one.k
        assert together.rows.shape == together.scores.shape
        assert np.isfinite(together.scores).all()
