"""Lists of a data set against the scores of the baselines that they are cut from."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from index.lists.item_lists import ItemList
from training.data.sequences import Sequences
from training.lists import build
from training.lists.build import co_occurrence_list, look_list, words_list
from training.ranking.baselines import CoOccurrence
from training.ranking.tfidf_neighbours import TfidfNeighbours

Make = Callable[[list[list[int]]], Sequences]
TEXTS = ["red wool hat", "red hat", None, "blue wool scarf", "", "blue scarf with wool", "red red hat", "boots"]


def expected(similarities: NDArray[np.floating], neighbours: int) -> list[list[tuple[int, float]]]:
    """The nearest of every row of a whole matrix, by float16 similarity and then by row."""
    stored = similarities.astype(np.float16)
    np.fill_diagonal(stored, 0)
    lists = []
    for values in stored:
        order = sorted(np.flatnonzero(values > 0).tolist(), key=lambda row: (-values[row], row))
        lists.append([(row, float(values[row])) for row in order[:neighbours]])
    return lists


def entries(item_list: ItemList) -> list[list[tuple[int, float]]]:
    item_list.check()
    return [
        list(zip(rows.tolist(), [float(value) for value in values], strict=True))
        for rows, values in map(item_list.of, range(len(item_list)))
    ]


@pytest.fixture(params=[1 << 23, 40, 1], ids=["one block", "small blocks", "an item a block"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_ENTRIES_PER_BLOCK", request.param)


def random_histories(make_sequences: Make, items: int) -> Sequences:
    rng = np.random.default_rng(5)
    return make_sequences([rng.integers(0, items, size=rng.integers(1, 30)).tolist() for _ in range(40)])


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("neighbours", [1, 3, 100])
def test_co_is_the_co_occurrence_of_the_baseline(make_sequences: Make, neighbours: int) -> None:
    train = random_histories(make_sequences, 25)
    whole = CoOccurrence(train, 26).scores([np.array([row]) for row in range(26)])
    done: list[int] = []
    found = entries(co_occurrence_list(train, 26, neighbours, progress=done.append))
    assert [[row for row, _ in near] for near in found] == [
        [row for row, _ in near] for near in expected(whole, neighbours)
    ]
    for near, right in zip(found, expected(whole, neighbours), strict=True):
        np.testing.assert_allclose([v for _, v in near], [v for _, v in right], rtol=1e-3)
    assert found[25] == []
    assert done[-1] == 26


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("weighed", [False, True])
def test_the_sums_of_all_blocks_are_those_of_all_pairs_in_the_order_of_distance(
    make_sequences: Make, weighed: bool
) -> None:
    train = random_histories(make_sequences, 25)
    if weighed:
        weights = np.random.default_rng(6).random(len(train.rows)).astype(np.float32)
        train = replace(train, weights=weights)
    roots = np.ones(len(train.rows)) if train.weights is None else np.sqrt(train.weights.astype(np.float64))
    expected = np.zeros((26, 26))
    for distance in range(1, 21):
        for back in (False, True):
            for user in range(len(train)):
                for place in range(train.offsets[user] + distance, train.offsets[user + 1]):
                    older, newer, both = train.rows[place - distance], train.rows[place], roots[place - distance]
                    pair = (newer, older) if back else (older, newer)
                    expected[pair] += (older != newer) * both * roots[place] * ((0.3 if back else 1.0) / distance)
    events = build._ItemEvents.of(train, 26)
    blocks = [*build._pair_blocks(np.diff(events.starts))]
    found = [build._pair_sums(events, 26, first, last, 0.3).toarray() for first, last in blocks]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-12)
    read = [events.places(first, last) for first, last in blocks]
    assert sorted(np.concatenate(read).tolist()) == [*range(len(train.rows))], "each event is read in one block alone"


def test_co_by_hand(make_sequences: Make) -> None:
    """Items 0, 1, 2 occur 2, 2 and 1 times; 0 and 1 are neighbours twice, 0 and 2 are two events apart."""
    found = entries(co_occurrence_list(make_sequences([[0, 1, 2], [1, 0]]), 4, 5))
    assert found[0] == [(1, 1.0), (2, float(np.float16(0.5 / np.sqrt(2))))]
    assert found[2] == [(1, float(np.float16(1 / np.sqrt(2)))), (0, float(np.float16(0.5 / np.sqrt(2))))]
    assert found[3] == []


def test_co_with_shrinkage_by_hand(make_sequences: Make) -> None:
    """As above; 0 and 1 occur twice together (2 / (2 + 2)), each once beside 2."""
    found = entries(co_occurrence_list(make_sequences([[0, 1, 2], [1, 0]]), 4, 5, shrinkage=2.0))
    root = np.sqrt(2)
    assert found[0] == [(1, 0.5), (2, float(np.float16(0.5 / (root + 2))))]
    assert found[2] == [(1, float(np.float16(1 / (root + 2)))), (0, float(np.float16(0.5 / (root + 2))))]


def test_shrinkage_prefers_what_was_seen_together_often(make_sequences: Make) -> None:
    """0 and 1 are together in 3 of 4 events each, 0 and 2 in the only one of 2."""
    train = make_sequences([[0, 1], [0, 1], [0, 1], [1, 3], [0, 2]])
    plain, shrunk = (entries(co_occurrence_list(train, 4, 5, shrinkage=s)) for s in (0.0, 10.0))
    assert [row for row, _ in plain[2]] == [row for row, _ in shrunk[2]] == [0]
    assert dict(plain[0])[1] / dict(plain[0])[2] < dict(shrunk[0])[1] / dict(shrunk[0])[2]


def test_co_counts_what_came_before_with_the_backward_weight(make_sequences: Make) -> None:
    """0 comes before 1 and 2, each occurs once or twice: similarities are sums of 1 / distance or a quarter of it."""
    found = entries(co_occurrence_list(make_sequences([[0, 1, 2], [0, 3]]), 4, 5, backward=0.25))
    root = np.sqrt(2)
    whole, half = float(np.float16(1 / root)), float(np.float16(0.5 / root))
    assert found[0] == [(1, whole), (3, whole), (2, half)]
    assert found[1] == [(2, 1.0), (0, float(np.float16(0.25 / root)))]
    assert found[2] == [(1, 0.25), (0, float(np.float16(0.125 / root)))]
    none = entries(co_occurrence_list(make_sequences([[0, 1, 2]]), 3, 5, backward=0.0))
    assert [[row for row, _ in near] for near in none] == [[1, 2], [2], []]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("neighbours", [1, 2, 100])
def test_words_is_the_cosine_of_the_texts(neighbours: int) -> None:
    whole = TfidfNeighbours(TEXTS, 1).scores([np.array([row]) for row in range(len(TEXTS))])
    found = entries(words_list(TEXTS, neighbours))
    for near, right in zip(found, expected(whole, neighbours), strict=True):
        assert len(near) == len(right)
        np.testing.assert_allclose([v for _, v in near], [v for _, v in right], rtol=2e-3)
    assert found[2] == found[4] == found[7] == []
    assert found[1][0][0] in {0, 6}


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("neighbours", [1, 4, 100])
def test_look_is_the_cosine_of_the_picture_features(neighbours: int) -> None:
    features = np.random.default_rng(2).standard_normal((30, 4))
    features[[3, 8]] = 0
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units = (features / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    found = entries(look_list(features, neighbours))
    for near, right in zip(found, expected(units @ units.T, neighbours), strict=True):
        assert [row for row, _ in near] == [row for row, _ in right]
        np.testing.assert_allclose([v for _, v in near], [v for _, v in right], rtol=1e-3)
    assert found[3] == found[8] == []


def test_equal_similarities_go_by_row() -> None:
    found = entries(look_list(np.tile([[3.0, 4.0]], (6, 1)), 3))
    assert [[row for row, _ in near] for near in found] == [
        [1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2], [0, 1, 2],
    ]  # fmt: skip


@pytest.mark.parametrize("texts", [[None, None], ["", "!"], ["one"], []])
def test_a_catalogue_without_anything_to_compare_has_empty_lists(texts: list[str | None], make_sequences: Make) -> None:
    assert entries(words_list(texts, 5)) == [[] for _ in texts]
    assert entries(look_list(np.zeros((len(texts), 3)), 5)) == [[] for _ in texts]
    assert entries(co_occurrence_list(make_sequences([]), len(texts), 5)) == [[] for _ in texts]
