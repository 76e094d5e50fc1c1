import math

import numpy as np
import pytest

from training.ranking.tfidf_neighbours import TfidfNeighbours

TEXTS = ["red shoe", None, "red shoe", "blue hat", "...", "red hat"]


def test_scores_are_mean_cosines_by_hand() -> None:
    """Words and pairs with idf = ln((1 + texts) / (1 + texts with it)) + 1, rows of length 1."""

    def idf(count: int) -> float:
        return math.log(5 / (1 + count)) + 1

    # red 3 of 4 texts, shoe 2, "red shoe" 2; blue 1, hat 2, "blue hat" 1; "red hat" 1.
    shoe = {"red": idf(3), "shoe": idf(2), "red shoe": idf(2)}
    blue = {"blue": idf(1), "hat": idf(2), "blue hat": idf(1)}
    red_hat = {"red": idf(3), "hat": idf(2), "red hat": idf(1)}

    def cosine(a: dict[str, float], b: dict[str, float]) -> float:
        return sum(a[w] * b.get(w, 0) for w in a) / math.hypot(*a.values()) / math.hypot(*b.values())

    (scores,) = TfidfNeighbours(TEXTS, 2).scores([np.array([0, 0, 2, 3])])
    expected = [(cosine(shoe, item) + cosine(blue, item)) / 2 for item in (shoe, blue, red_hat)]
    np.testing.assert_allclose(scores[[0, 3, 5]], expected, rtol=1e-5)
    assert scores[2] == scores[0]
    assert scores[1] == scores[4] == 0


def test_items_without_a_word_cannot_be_found_and_count_nothing() -> None:
    neighbours = TfidfNeighbours(TEXTS, 10)
    assert neighbours.findable.tolist() == [True, False, True, True, False, True]
    alone, diluted = neighbours.scores([np.array([3]), np.array([3, 1])])
    np.testing.assert_allclose(diluted, alone / 2, rtol=1e-6)
    np.testing.assert_array_equal(neighbours.scores([np.array([1, 4])]), np.zeros((1, 6)))


@pytest.mark.parametrize("texts", [[None, None], ["", "!"]])
def test_a_catalogue_without_words_scores_zero(texts: list[str | None]) -> None:
    neighbours = TfidfNeighbours(texts, 10)
    assert not neighbours.findable.any()
    np.testing.assert_array_equal(neighbours.scores([np.array([0])]), np.zeros((1, 2)))
