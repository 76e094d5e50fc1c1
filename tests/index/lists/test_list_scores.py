"""Scores by item-to-item lists: by hand, against brute force, and the same in every batch."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.errors import SearchError
from index.items.slots import Slot, SlotLayout
from index.lists.item_lists import ItemLists, ListWeights
from index.lists.list_query import ListQuery
from index.lists.list_scores import ListScores, summed
from tests.support.listed_bundles import compressed

Neighbours = Sequence[Sequence[tuple[int, float]]]


def item_lists(recency: Sequence[float], weights: dict[str, float], **neighbours: Neighbours) -> ItemLists:
    lists = tuple(
        compressed(
            name,
            [
                (np.array([row for row, _ in near], np.int32), np.array([value for _, value in near], np.float16))
                for near in neighbours[name]
            ],
        )
        for name in ("co", "words", "look")
        if name in neighbours
    )
    count = len(lists[0]) if lists else 4
    return ItemLists(count, lists, ListWeights(np.array(recency, np.float32), weights))


def history(*rows: int) -> NDArray[np.int64]:
    return np.array(rows, dtype=np.int64)


BY_HAND = item_lists(
    [1.0, 0.5],
    {"co": 2.0, "words": 4.0},
    co=[[(1, 0.5), (2, 0.25)], [(2, 1.0)], [], [(0, 0.75)]],
    words=[[(3, 0.5)], [(0, 0.125), (3, 0.0625)], [], []],
)


def test_the_parts_are_those_computed_by_hand():
    found = ListScores(BY_HAND).candidates([history(0, 1)])
    rows, parts = found.of(0)
    assert rows.tolist() == [0, 1, 2, 3]
    # co: item 1 is newest: 2·1·{2: 1.0}; item 0 is older: 2·.5·{1: .5, 2: .25}.
    # words: 4·1·{0: 1/8, 3: 1/16} and 4·.5·{3: .5}.
    assert parts.tolist() == [[0.0, 0.5], [0.5, 0.0], [2.25, 0.0], [0.0, 1.25]]
    assert summed(parts).tolist() == [0.5, 0.5, 2.25, 1.25]


def test_an_older_item_than_the_recency_covers_counts_nothing():
    scores = ListScores(BY_HAND)
    assert scores.dense([history(3, 0, 1)]).tolist() == scores.dense([history(0, 1)]).tolist()


def test_an_item_that_occurs_twice_in_a_history_counts_twice():
    assert ListScores(BY_HAND).dense([history(3, 3)]).tolist() == [[2.25, 0.0, 0.0, 0.0]]


def test_given_items_have_the_same_parts_and_zero_where_no_list_names_them():
    found = ListScores(BY_HAND).parts([history(0, 1), history(2)], [history(1, 2), history(0, 3)])
    assert found.rows.tolist() == [1, 2, 0, 3]
    assert found.parts.tolist() == [[0.5, 0.0], [2.25, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_the_weight_of_a_slot_multiplies_the_parts_of_its_lists():
    scores = ListScores(BY_HAND)
    _, parts = scores.candidates([history(0, 1)]).of(0)
    assert summed(parts, scores.scales({"text": 0.0, "image": 7.0})).tolist() == [0.0, 0.5, 2.25, 0.0]
    assert summed(parts, scores.scales({"behaviour": 2.0})).tolist() == [0.5, 1.0, 4.5, 1.25]


@pytest.mark.parametrize("histories", [[], [history()], [history(2)]])
def test_a_history_without_neighbours_has_no_candidates(histories: list[NDArray[np.int64]]):
    found = ListScores(BY_HAND).candidates(histories)
    assert found.rows.tolist() == []
    assert found.parts.shape == (0, 2)
    assert found.offsets.tolist() == [0] * (len(histories) + 1)


def test_without_lists_there_is_nothing_to_add():
    scores = ListScores(item_lists([1.0], {}))
    assert scores.dense([history(0, 1)]).tolist() == [[0.0] * 4]
    assert scores.parts([history(0)], [history(1, 3)]).parts.shape == (2, 0)


def test_a_list_whose_slot_is_absent_is_left_out():
    text_only = BY_HAND.for_layout(SlotLayout((Slot("text", 3),)))
    assert text_only.names == ("words",)
    assert ListScores(text_only).dense([history(0, 1)]).tolist() == [[0.5, 0.0, 0.0, 1.25]]


def test_a_list_of_weight_0_has_no_part():
    scores = ListScores(BY_HAND.weighed(ListWeights(BY_HAND.weights.recency, {"co": 0.0, "words": 4.0})))
    assert scores.lists.names == ("words",)
    assert scores.dense([history(0, 1)]).tolist() == [[0.5, 0.0, 0.0, 1.25]]


@pytest.mark.parametrize("rows", [history(-1), history(4), history(0, 99)])
def test_a_row_outside_the_catalogue_is_refused(rows: NDArray[np.int64]):
    with pytest.raises(SearchError, match="0 … 3"):
        ListScores(BY_HAND).candidates([rows])
    with pytest.raises(SearchError, match="0 … 3"):
        ListScores(BY_HAND).parts([history(0)], [rows])


def test_given_items_must_ascend_and_there_must_be_some_for_each_history():
    with pytest.raises(SearchError, match="ascend"):
        ListScores(BY_HAND).parts([history(0)], [history(2, 1)])
    with pytest.raises(SearchError, match="each of 2 histories"):
        ListScores(BY_HAND).parts([history(0), history(1)], [history(2)])


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[ItemLists, list[NDArray[np.int64]]]:
    count = draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = draw(st.lists(st.sampled_from(["co", "words", "look"]), unique=True))
    neighbours = {}
    for name in names:
        near = []
        for item in range(count):
            others = rng.permutation(np.delete(np.arange(count), item))[: rng.integers(0, count)]
            values = np.sort(rng.random(len(others)).astype(np.float16) + np.float16(0.001))[::-1]
            near.append(list(zip(others.tolist(), values.tolist(), strict=True)))
        neighbours[name] = near
    recency = rng.random(draw(st.integers(1, 6))).tolist()
    lists = item_lists(recency, {name: float(rng.random() + 0.1) for name in names}, **neighbours)
    if not names:
        count = 4
    histories = [rng.integers(0, count, size=rng.integers(0, 9)) for _ in range(draw(st.integers(1, 5)))]
    return lists, histories


def brute_force(lists: ItemLists, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(lists, n) parts, one addition at a time."""
    parts = np.zeros((len(lists.lists), lists.items))
    for number, item_list in enumerate(lists.lists):
        for age, item in enumerate(rows[::-1].tolist()[: len(lists.weights.recency)]):
            for row, value in zip(*item_list.of(item), strict=True):
                scale = float(lists.weights.recency[age]) * lists.weights.weights[item_list.name]
                parts[number, row] += scale * float(value)
    return parts


@settings(max_examples=150, deadline=None)
@given(catalogues())
def test_parts_equal_brute_force_and_do_not_depend_on_the_batch(case: tuple[ItemLists, list[NDArray[np.int64]]]):
    lists, histories = case
    scores = ListScores(lists)
    found, every = scores.candidates(histories), np.arange(lists.items)
    whole = scores.parts(histories, [every] * len(histories))
    for number, rows in enumerate(histories):
        expected = brute_force(lists, rows)
        own_rows, own = found.of(number)
        assert own_rows.tolist() == np.flatnonzero(expected.any(axis=0)).tolist()
        np.testing.assert_array_equal(own, expected[:, own_rows].T.astype(np.float32))
        np.testing.assert_array_equal(whole.of(number)[1], expected.T.astype(np.float32))
        alone_rows, alone = scores.candidates([rows]).of(0)
        assert alone_rows.tolist() == own_rows.tolist()
        assert alone.tobytes() == own.tobytes()
        np.testing.assert_array_equal(scores.dense([rows])[0], summed(whole.of(number)[1]))


@settings(max_examples=150, deadline=None)
@given(catalogues(), st.data())
def test_contributions_to_any_rows_equal_brute_force(
    case: tuple[ItemLists, list[NDArray[np.int64]]], data: st.DataObject
):
    lists, histories = case
    scores, k = ListScores(lists), data.draw(st.integers(0, 9))
    line = st.lists(st.integers(-1, lists.items - 1), min_size=k, max_size=k)  # repeated ones too
    rows = np.array([data.draw(line) for _ in histories], dtype=np.int64).reshape(len(histories), k)
    found = scores.contributions([ListQuery(history) for history in histories], rows)
    assert (found.dtype, found.shape) == (np.float32, (*rows.shape, len(lists.lists)))
    for number, history in enumerate(histories):
        expected = brute_force(lists, history).T.astype(np.float32)[rows[number]]
        np.testing.assert_array_equal(found[number], np.where(rows[number, :, None] < 0, 0, expected))
        alone = scores.contributions([ListQuery(history)], rows[number][None])
        assert alone[0].tobytes() == found[number].tobytes()
