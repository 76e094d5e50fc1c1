"""Entries of lists: read as the lists store them, bounded by buckets, summed exactly for any choice of buckets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import SearchError
from index.lists.item_lists import ItemList, ItemLists, ListWeights
from index.lists.list_entries import ListedItems, ListEntries, ListReader
from index.lists.list_query import ListQuery
from index.lists.list_scores import ListScores
from tests.support.listed_bundles import compressed

ITEMS = 3_000
NONE_OF_3 = np.zeros((3, 0), dtype=np.int64)


def random_list(name: str, shortest: int, longest: int, rng: np.random.Generator) -> ItemList:
    lists = []
    for row in range(ITEMS):
        near = rng.choice(ITEMS - 1, rng.integers(shortest, longest + 1), replace=False)
        values = np.sort(rng.uniform(0.01, 1.0, len(near)))[::-1]
        lists.append(((near + (near >= row)).astype(np.int32), values.astype(np.float16)))
    return compressed(name, lists)


@pytest.fixture(scope="module")
def scores() -> ListScores:
    """Of a list with as many neighbours for every item, one with few for some, and one with none at all."""
    rng = np.random.default_rng(0)
    lists = (
        random_list("co", 12, 12, rng),
        random_list("words", 0, 9, rng),
        compressed("look", [(np.zeros(0, np.int32), np.zeros(0, np.float16))] * ITEMS),
    )
    recency = np.array([1.0, 0.7, 0.5, 0.2, 0.0], dtype=np.float32)
    return ListScores(ItemLists(ITEMS, lists, ListWeights(recency, {"co": 0.7, "words": 0.3, "look": 0.2})))


def parts_one_by_one(scores: ListScores, query: ListQuery | None) -> dict[int, np.float32]:
    """What the lists add to each item, one addition at a time: list by list, newest item first."""
    parts: dict[int, float] = {}
    lists = scores.lists
    for item_list in lists.lists if query is not None else ():
        for age, row in enumerate(query.rows[::-1][: scores.history].tolist()):
            weight = 1.0 if query.weights is None else float(query.weights[::-1][age])
            factor = lists.weights.weights[item_list.name] * (weight * float(lists.weights.recency[age]))
            for near, similarity in zip(*item_list.of(row), strict=True):
                parts[int(near)] = parts.get(int(near), 0.0) + factor * float(similarity)
    return {row: np.float32(part) for row, part in parts.items() if part > 0}


@st.composite
def batches(draw: st.DrawFn) -> list[ListQuery | None]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries: list[ListQuery | None] = []
    for _ in range(draw(st.integers(1, 5))):
        rows = rng.integers(ITEMS - 30 if rng.random() < 0.3 else 0, ITEMS, rng.integers(0, 8))
        weights = rng.uniform(0.1, 4.0, len(rows)).astype(np.float32) if rng.random() < 0.5 else None
        queries.append(ListQuery(rows, weights) if rng.random() < 0.85 else None)
    return queries


def listed(entries: ListEntries, least: np.ndarray) -> tuple[list[dict[int, np.float32]], list[list[int]]]:
    """Rows and parts of each query in the buckets, and the rows that were found by slots."""
    items = entries.items_in(least)
    keys = items.numbers * ITEMS + items.rows
    assert (np.diff(keys) > 0).all()
    queries = range(len(least))
    own = [(items.numbers == number) & (items.parts > 0) for number in queries]
    parts = [dict(zip(items.rows[some].tolist(), items.parts[some], strict=True)) for some in own]
    return parts, [items.rows[items.found & (items.numbers == number)].tolist() for number in queries]


@settings(max_examples=60, deadline=None)
@given(batches(), st.integers(0, 2**32 - 1))
def test_parts_are_exact_for_any_choice_of_buckets_and_never_above_their_bucket(scores, queries, seed):
    rng = np.random.default_rng(seed)
    found = np.array([rng.choice(ITEMS, 30, replace=False) for _ in queries])
    found[:, 30 - rng.integers(0, 4) :] = -1
    entries = scores.entries(queries, found)
    expected = [parts_one_by_one(scores, query) for query in queries]
    by_slots = [sorted(set(rows.tolist()) - {-1}) for rows in found]
    assert listed(entries, np.zeros(len(queries))) == (expected, by_slots)
    least = rng.uniform(0, 1.2, len(queries))
    some, still = listed(entries, least)
    assert still == by_slots
    for number, own in enumerate(expected):
        chosen = entries.sums[number] >= least[number]
        chosen[np.array(by_slots[number]) % entries.buckets] = True
        assert some[number] == {row: part for row, part in own.items() if chosen[row % entries.buckets]}
        for row, part in own.items():
            assert entries.sums[number, row % entries.buckets] >= part * (1 - 1e-6)


def test_parts_of_many_entries_are_exact_down_to_the_smallest_similarity():
    rng = np.random.default_rng(3)
    positive = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)  # every finite one, subnormal ones as well
    lists = []
    for row in range(ITEMS):
        near = rng.choice(ITEMS - 1, 12, replace=False)
        lists.append(((near + (near >= row)).astype(np.int32), np.sort(rng.choice(positive, 12))[::-1]))
    weights = ListWeights(np.array([1.0, 0.7, 0.5], dtype=np.float32), {"co": 0.3})
    scores = ListScores(ItemLists(ITEMS, (compressed("co", lists),), weights))
    queries = [ListQuery(rng.integers(0, ITEMS, 3)) for _ in range(80)]  # 2,880 entries, a large batch
    entries = scores.entries(queries, np.zeros((80, 0), dtype=np.int64))
    assert listed(entries, np.zeros(80))[0] == [parts_one_by_one(scores, query) for query in queries]


def test_the_strongest_buckets_are_at_least_as_many_as_asked_for(scores):
    rng = np.random.default_rng(1)
    entries = scores.entries([ListQuery(rng.integers(0, ITEMS, 4)) for _ in range(3)], NONE_OF_3)
    for count in (1, 4, 20, entries.buckets, 10 * entries.buckets):
        chosen = entries.sums >= entries.strongest(count)[:, None]
        assert (chosen.sum(axis=1) >= min(count, entries.buckets)).all()
    assert ((entries.sums >= entries.strongest(4)[:, None]).sum(axis=1) < 20).all()


NOTHING = np.zeros(0, np.int64)


def test_lines_are_filled_up_with_their_last_item():
    numbers, rows_of, parts_of = np.array([0, 2, 2, 2]), np.array([4, 1, 3, 7]), np.array([0.5, 0, 1, 2], np.float32)
    rest = (rows_of, parts_of, np.arange(4) == 1, NOTHING, NOTHING.astype(float), NOTHING, NOTHING)
    items = ListedItems(numbers, *rest)
    kept = np.array([True, True, False, True])
    rows, parts, found, filled = items.in_lines(kept, 3)
    assert filled.tolist() == [[False, True], [True, True], [False, False]]
    assert rows[~filled].tolist() == [4, 1, 7]
    assert parts[~filled].tolist() == [0.5, 0, 2]
    assert found[~filled].tolist() == [False, True, False]
    assert (rows[0, 1], parts[0, 1], found[0, 1]) == (4, 0.5, False)
    alone = ListedItems(numbers * 0, *rest).in_lines(kept, 1)
    assert (alone[0].tolist(), alone[3]) == ([[4, 1, 7]], None)


@pytest.mark.parametrize("shortest", [0, 6])
def test_the_entries_of_items_are_read_with_zeros_beside_them(shortest):
    rng = np.random.default_rng(2)
    lists = [random_list("co", shortest, 6, rng), random_list("words", shortest, 6, rng)]
    if not shortest:
        lists.append(compressed("look", [(np.zeros(0, np.int32), np.zeros(0, np.float16))] * ITEMS))
    items = np.array([0, 17, 17, ITEMS - 2, ITEMS - 1])
    near, values = ListReader(lists).read(items)
    assert near.shape == values.shape == (len(lists), 5, 6)
    assert ((near >= 0) & (near < ITEMS)).all()
    for own_list, own_near, own_values in zip(lists, near, values, strict=True):
        for line, row in enumerate(items.tolist()):
            rows, similarities = own_list.of(row)
            own = own_values[line] > 0
            assert own_near[line][own].tolist() == rows.tolist()
            assert own_values[line][own].tolist() == similarities.tolist()


def test_no_history_has_no_entries(scores):
    assert not scores.entries([None, ListQuery(np.zeros(0, np.int64))], NONE_OF_3[:2]).sums.any()
    assert not scores.entries([], NONE_OF_3[:0]).sums.any()


def test_a_row_outside_the_catalogue_is_refused(scores):
    for row in (ITEMS, -1):
        with pytest.raises(SearchError, match="item rows must lie in 0 … 2999"):
            scores.entries([ListQuery(np.array([5, row]))], NONE_OF_3[:1])
