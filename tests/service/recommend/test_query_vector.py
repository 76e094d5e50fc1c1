"""Weighted histories against the formulas of docs/method.md, computed by hand."""

import numpy as np
import pytest

from service.recommend.query_vector import WeightedHistory, mean_query, sequence_query

RIGHT = np.array([1.0, 0.0], np.float32)
UP = np.array([0.0, 1.0], np.float32)


def test_weights_of_one_leave_the_encoders_answer_alone() -> None:
    encoded = np.array([0.3, -0.7], np.float32)
    assert np.array_equal(sequence_query(encoded, np.stack([RIGHT, UP]), np.ones(2)), encoded)


def test_a_negative_weight_pushes_away_by_its_share_of_the_items() -> None:
    # e = (3, 4), ‖e‖ = 5, n = 2: (3, 4) + 5 · (0 · right − 1 · up) / 2
    query = sequence_query(np.array([3, 4], np.float32), np.stack([RIGHT, UP]), np.array([1.0, -1.0]))
    assert query == pytest.approx([3.0, 1.5])


def test_a_weight_above_one_adds_only_what_is_more_than_one() -> None:
    # (3, 4) + 5 · ((2 − 1) · right + (0.5 − 1) · up) / 2
    query = sequence_query(np.array([3, 4], np.float32), np.stack([RIGHT, UP]), np.array([2.0, 0.5]))
    assert query == pytest.approx([5.5, 2.75])
    assert query.dtype == np.float32


def test_the_mean_is_weighted_and_scaled_by_the_weights_size() -> None:
    assert mean_query(RIGHT[None], np.ones(1)) == pytest.approx(RIGHT)
    assert mean_query(np.stack([RIGHT, UP]), np.array([3.0, 1.0])) == pytest.approx([0.75, 0.25])
    assert mean_query(np.stack([RIGHT, UP]), np.array([3.0, -1.0])) == pytest.approx([0.75, -0.25])


@pytest.mark.parametrize("tiny", [1e-300, 5e-324])
def test_the_smallest_weights_do_not_vanish(tiny: float) -> None:
    assert mean_query(RIGHT[None], np.array([tiny])) == pytest.approx(RIGHT)


def weighted(weights: list[float]) -> WeightedHistory:
    return WeightedHistory.of(range(len(weights)), weights)


def test_positive_items_keep_their_order() -> None:
    assert weighted([1, -1, 0.5, 2]).positive.tolist() == [0, 2, 3]
    assert weighted([-1]).positive.tolist() == []
    assert weighted([1, 1]).plain
    assert not weighted([1, 2]).plain


def test_the_newest_positive_and_all_negative_items_are_kept() -> None:
    newest = weighted([-1, 1, 2, -3, 4]).newest(2)
    assert newest.rows.tolist() == [0, 2, 3, 4]
    assert newest.weights.tolist() == [-1, 2, -3, 4]
    assert len(newest) == 4


def test_the_newest_items_of_a_plain_history_are_its_end() -> None:
    newest = weighted([1, 1, 1, 1]).newest(3)
    assert (newest.rows.tolist(), newest.positive.tolist(), newest.weights.tolist()) == (
        [1, 2, 3],
        [1, 2, 3],
        [1, 1, 1],
    )
    assert newest.plain
    assert weighted([1, 1]).newest(0).rows.tolist() == []
    assert weighted([2, 1, 1]).newest(2).plain


def test_a_short_history_is_kept_whole() -> None:
    whole = weighted([1, 2])
    assert whole.newest(2) is whole
