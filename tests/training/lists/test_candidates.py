"""Lists of large catalogues, whose candidates are found by rarer words or a graph, against the exact ones."""

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.index.list_building import made_features, made_texts
from index.lists.item_lists import ItemList
from training.lists import build
from training.lists.build import look_list, words_list


@pytest.fixture
def _few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are compared by candidates, each by terms of at most 400 texts together."""
    monkeypatch.setattr(build, "_MOST_PAIRS", 1)
    monkeypatch.setattr(build, "_PAIRS_OF_AN_ITEM", 400)


@pytest.fixture
def _few_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are compared by a graph."""
    monkeypatch.setattr(build, "_MOST_COMPARED", 1)


def similarities(item_list: ItemList) -> list[dict[int, float]]:
    item_list.check()
    return [
        dict(zip(rows.tolist(), values.tolist(), strict=True))
        for rows, values in map(item_list.of, range(len(item_list)))
    ]


def recall(found: ItemList, exact: ItemList) -> float:
    """Share of the exact entries whose similarity, or a larger one, is at the same place; checks what is stored."""
    pairs = zip(similarities(found), similarities(exact), strict=True)
    right = 0
    for some, all_of_them in pairs:
        for row, value in some.items():
            if row in all_of_them:
                assert value == pytest.approx(all_of_them[row], rel=1e-3)
        least = min(all_of_them.values(), default=0.0) * (1 - 1e-3)
        right += sum(value >= least for value in some.values())
    return right / len(exact.rows)


def same(one: ItemList, other: ItemList) -> bool:
    names = ("offsets", "rows", "similarities")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def features() -> NDArray[np.float32]:
    return made_features(4_000, seed=3)


def test_words_by_candidates_hold_nine_in_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = made_texts(4_000, seed=3)
    exact = words_list(texts, 10)
    monkeypatch.setattr(build, "_MOST_PAIRS", 1)
    monkeypatch.setattr(build, "_PAIRS_OF_AN_ITEM", 400)
    assert 0.9 <= recall(words_list(texts, 10), exact) < 1


def test_an_item_whose_terms_are_in_few_texts_is_compared_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"w{row % 40} v{row % 9} u{row % 7}" for row in range(300)]
    exact = words_list(texts, 5)
    monkeypatch.setattr(build, "_MOST_PAIRS", 1)
    assert same(words_list(texts, 5), exact)


@pytest.mark.usefixtures("_few_pairs")
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_the_words(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.lists.word_candidates._PAIRS_PER_BLOCK", 20_000)
    texts = made_texts(1_000)
    assert same(words_list(texts, 10, threads=1), words_list(texts, 10, threads=threads))


def test_threads_do_not_change_the_exact_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_ENTRIES_PER_BLOCK", 10_000)
    texts = made_texts(500)
    assert same(words_list(texts, 10, threads=1), words_list(texts, 10, threads=2))


@pytest.mark.usefixtures("_few_pairs")
def test_equal_texts_go_by_row_though_all_words_are_frequent() -> None:
    """A thousand equal texts: each word is in more texts than the limit, and each text is as near as any other."""
    found = words_list(["red hat"] * 1_000, 3)
    assert found.of(0)[0].tolist() == [1, 2, 3]
    assert found.of(2)[0].tolist() == [0, 1, 3]
    assert found.of(999)[0].tolist() == [0, 1, 2]
    assert found.similarities.min() == 1


@pytest.mark.usefixtures("_few_pairs")
def test_texts_of_one_frequent_word_find_the_texts_in_which_it_weighs_most() -> None:
    texts = ["hat", "hat", *(f"hat w{row}" for row in range(900))]
    found = words_list(texts, 1)
    assert (found.of(0)[0].tolist(), found.of(1)[0].tolist()) == ([1], [0])
    assert found.of(500)[0].tolist() == [0]


@pytest.mark.usefixtures("_few_pairs")
def test_items_without_a_word_have_no_candidates() -> None:
    done: list[int] = []
    found = words_list(["red hat", None, "", "!", "red hat", "blue"], 5, progress=done.append)
    assert np.diff(found.offsets).tolist() == [1, 0, 0, 0, 1, 0]
    assert done[-1] == 6
    assert len(words_list(["one"], 5).rows) == 0


def test_progress_is_reported_while_texts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_TEXTS_PER_REPORT", 10)
    done: list[int] = []
    words_list(["red hat"] * 35, 5, progress=done.append)
    assert done == [0, 0, 0, 35]


def test_looks_by_candidates_hold_nearly_all(request: pytest.FixtureRequest) -> None:
    exact = look_list(features(), 10)
    request.getfixturevalue("_few_compared")
    done: list[int] = []
    found = look_list(features(), 10, progress=done.append)
    assert recall(found, exact) >= 0.95
    assert np.diff(found.offsets)[::20].max() == 0, "no picture"
    assert done[-1] == 4_000


def test_looks_without_groups_are_found_too(request: pytest.FixtureRequest) -> None:
    """Vectors in all directions, and one that a tenth of the items share."""
    vectors = np.random.default_rng(2).standard_normal((3_000, 36))
    vectors[::10] = vectors[0]
    exact = look_list(vectors, 10)
    request.getfixturevalue("_few_compared")
    assert recall(look_list(vectors, 10), exact) >= 0.98


@pytest.mark.usefixtures("_few_compared")
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_the_looks(threads: int) -> None:
    assert same(look_list(features(), 10, threads=1), look_list(features(), 10, threads=threads))


@pytest.mark.usefixtures("_few_compared")
def test_equal_pictures_go_by_row_though_they_are_more_than_are_compared() -> None:
    many = np.concatenate([np.tile([[3.0, 4.0]], (900, 1)), np.tile([[-4.0, 3.0]], (5, 1)), np.zeros((2, 2))])
    found = look_list(many, 3)
    assert found.of(0)[0].tolist() == [1, 2, 3]
    assert found.of(899)[0].tolist() == [0, 1, 2]
    assert found.of(904)[0].tolist() == [900, 901, 902]
    assert np.diff(found.offsets)[-2:].tolist() == [0, 0]


@pytest.mark.usefixtures("_few_compared")
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_catalogues_of_hardly_an_item(rows: int) -> None:
    found = look_list(np.ones((rows, 2)), 5)
    assert np.diff(found.offsets).tolist() == [rows - 1] * rows
    assert len(look_list(np.zeros((rows, 2)), 5).rows) == 0
