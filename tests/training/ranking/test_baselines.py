from collections.abc import Callable

import numpy as np
import pytest

from index.items.slots import Slot, SlotLayout
from training.data.sequences import Sequences, popularity
from training.ranking.baselines import RECENCY, ContentMean, CoOccurrence, ItemMean, Popularity, unit_slots

Make = Callable[[list[list[int]]], Sequences]


def test_popularity_gives_everyone_the_training_counts(make_sequences: Make) -> None:
    train = make_sequences([[0, 1, 1], [1, 3]])
    scores = Popularity(popularity(train, 5)).scores([np.array([0]), np.array([4, 2])])
    np.testing.assert_array_equal(scores, [[1, 3, 0, 1, 0]] * 2)


def test_co_occurrence_by_hand(make_sequences: Make) -> None:
    # Pairs: (0,1) at distance 1 twice, (0,2) at 2 once, (1,2) at 1 once. Events: 0 → 2, 1 → 2, 2 → 1, 3 → 0.
    model = CoOccurrence(make_sequences([[0, 1, 2], [0, 1]]), 4)
    near_0 = np.array([0, 2 / np.sqrt(2 * 2), 0.5 / np.sqrt(2 * 1), 0])
    near_2 = np.array([0.5 / np.sqrt(2), 1 / np.sqrt(2), 0, 0])
    np.testing.assert_allclose(model.scores([np.array([0])]), [near_0], rtol=1e-6)
    np.testing.assert_allclose(model.scores([np.array([2, 0])]), [near_0 + RECENCY * near_2], rtol=1e-6)
    np.testing.assert_array_equal(model.scores([np.array([3])]), np.zeros((1, 4)))


def test_co_occurrence_forgets_old_items_and_far_pairs(make_sequences: Make) -> None:
    far = make_sequences([[0, *range(2, 22), 1]])  # 0 and 1 are 21 apart
    assert CoOccurrence(far, 22).scores([np.array([0])])[0, 1] == 0
    near = CoOccurrence(make_sequences([[0, 1]]), 12)
    assert near.scores([np.array([0, *range(2, 11)])])[0, 1] > 0  # the tenth from the end still counts
    assert near.scores([np.array([0, *range(2, 12)])])[0, 1] == 0


def test_an_item_is_no_neighbour_of_itself(make_sequences: Make) -> None:
    model = CoOccurrence(make_sequences([[0, 0, 1]]), 2)
    np.testing.assert_array_equal(model.scores([np.array([0])])[0, 0], 0)


def test_users_do_not_run_into_each_other(make_sequences: Make) -> None:
    model = CoOccurrence(make_sequences([[0, 1], [2, 3]]), 4)
    assert model.scores([np.array([1])])[0, 2] == 0


def test_co_occurrence_of_histories_too_short_for_a_pair(make_sequences: Make) -> None:
    model = CoOccurrence(make_sequences([[0], [1]]), 3)
    np.testing.assert_array_equal(model.scores([np.array([0, 1])]), np.zeros((1, 3)))


def test_blocks_of_pairs_add_up(make_sequences: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    train = make_sequences([rng.integers(0, 9, 30).tolist() for _ in range(5)])
    whole = CoOccurrence(train, 9).scores([np.arange(9)])
    monkeypatch.setattr("training.ranking.baselines._PAIRS_PER_BLOCK", 1)
    np.testing.assert_allclose(CoOccurrence(train, 9).scores([np.arange(9)]), whole, rtol=1e-6)


def test_item_mean_scores_with_the_mean_of_the_newest() -> None:
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float16)
    scores = ItemMean(vectors, 2).scores([np.array([0, 0, 1]), np.array([1])])
    np.testing.assert_allclose(scores, [[0.5, 0.5, 0.7], [0, 1, 0.8]], atol=1e-3)


def test_item_mean_favours_items_with_fewer_slots_and_unit_slots_do_not() -> None:
    """Both candidates have the text and the picture of the history; one has a behaviour vector at a right angle."""
    layout = SlotLayout((Slot("text", 2), Slot("image", 2), Slot("behaviour", 2)))
    same = np.tile(np.array([[0.6, 0.8]], dtype=np.float32), (3, 1))
    behaviour = np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float32)
    vectors = layout.stack({"text": same, "image": same, "behaviour": behaviour})
    warm, cold = ItemMean(vectors, 10).scores([np.array([0])])[0, 1:]
    assert cold / warm == pytest.approx(np.sqrt(3 / 2), rel=1e-6)
    equal = ItemMean(unit_slots(layout, vectors), 10).scores([np.array([0])])[0]
    np.testing.assert_allclose(equal, [3, 2, 2], rtol=1e-6)


def test_content_mean_by_hand() -> None:
    text = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 0]], dtype=np.float32)
    image = np.array([[0, 1], [0, 0], [0, 1], [0, 0]], dtype=np.float32)
    model = ContentMean({"text": text, "image": image}, 2)
    half = np.sqrt(0.5)
    found = model.scores([np.array([2, 0, 1]), np.array([0]), np.array([3])])
    # Text of 0 and 1 together at 45 degrees; the picture of 0 alone.
    np.testing.assert_allclose(found[0], [half + 1, half, 1.4 * half + 1, 0], rtol=1e-6)
    np.testing.assert_allclose(found[1], [2, 0, 1.6, 0], rtol=1e-6)
    np.testing.assert_array_equal(found[2], np.zeros(4))
    assert model.findable.tolist() == [True, True, True, False]
