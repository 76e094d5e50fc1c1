import itertools
import math

import numpy as np
import pytest

from training.errors import EvaluationError
from training.ranking import metrics


def test_ranks_by_hand() -> None:
    scores = np.array([[5.0, 4.0, 3.0, 2.0], [1.0, 1.0, 1.0, 9.0], [0.0, 7.0, 7.0, 7.0]], dtype=np.float32)
    candidates = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=bool)
    # 2 is behind 5, 4 and 3; a 1 among three 1s has two ties (the 9 does not compete); a 7 among three has two ties.
    found = metrics.ranks(scores, np.array([3, 0, 2]), candidates)
    np.testing.assert_array_equal(found.ahead, [3, 0, 0])
    np.testing.assert_array_equal(found.tied, [0, 2, 2])
    np.testing.assert_array_equal(found.means, [3, 1, 1])


def test_ranks_agree_with_sorting() -> None:
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((40, 30)).astype(np.float32)  # no ties
    candidates = rng.random((40, 30)) < 0.7
    targets = rng.integers(0, 30, 40)
    for got, row, allowed, target in zip(
        metrics.ranks(scores, targets, candidates).ahead, scores, candidates, targets, strict=True
    ):
        competing = sorted({*np.flatnonzero(allowed).tolist(), int(target)}, key=lambda item: -row[item])
        assert got == competing.index(int(target))


def test_a_constant_score_is_as_good_as_chance() -> None:
    rank = metrics.ranks(np.zeros((1, 101)), np.array([7]), np.ones((1, 101), dtype=bool))
    assert rank.means == [50.0]
    np.testing.assert_allclose(metrics.hits(rank, 10), [10 / 101])
    np.testing.assert_allclose(metrics.gains(rank, 10), [sum(1 / math.log2(place + 2) for place in range(10)) / 101])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_a_tie_has_the_mean_over_all_orders_of_the_tied_items(k: int) -> None:
    scores = np.array([[2, 1, 1, 0, 1], [1, 1, 1, 1, 1], [3, 3, 0, 1, 2], [1, 0, 0, 0, 0]], dtype=np.float32)
    targets, everything = np.array([2, 4, 1, 3]), np.ones((4, 5), dtype=np.bool_)
    found = metrics.ranks(scores, targets, everything)
    for user, (row, target) in enumerate(zip(scores, targets.tolist(), strict=True)):
        # Every order of the items, then a stable sort by score: each order of a tied block is as frequent as any other.
        places = [
            sorted(order, key=lambda item: -row[item]).index(target) for order in itertools.permutations(range(5))
        ]
        hit = np.mean([place < k for place in places])
        gain = np.mean([1 / math.log2(place + 2) if place < k else 0 for place in places])
        assert metrics.hits(found, k)[user] == pytest.approx(hit, rel=1e-12)
        assert metrics.gains(found, k)[user] == pytest.approx(gain, rel=1e-12)
        assert found.means[user] == pytest.approx(np.mean(places))


def test_a_tie_across_the_cut_counts_the_share_of_its_positions_inside() -> None:
    # Positions 8 … 12, two of the five inside; 12 … 14, none; the last cannot be returned, whatever ties with it.
    found = metrics.Ranks(np.array([8.0, 12, np.inf]), np.array([4.0, 2, 3]))
    np.testing.assert_allclose(metrics.hits(found, 10), [2 / 5, 0, 0])
    np.testing.assert_allclose(metrics.gains(found, 10), [(1 / math.log2(10) + 1 / math.log2(11)) / 5, 0, 0])


def test_ranks_of_some_users_and_of_blocks() -> None:
    whole = metrics.Ranks(np.array([0.0, 1, 2]), np.array([4.0, 0, 2]))
    first, last = whole.only(np.array([True, False, False])), whole.only(np.array([False, True, True]))
    joined = metrics.Ranks.joined([first, last])
    assert (joined.means.tolist(), joined.tied.tolist(), len(joined)) == ([2, 1, 3], [4, 0, 2], 3)
    assert len(metrics.Ranks.joined([])) == 0
    missed = whole.missed(np.array([True, False, False]))
    assert (missed.ahead.tolist(), missed.tied.tolist()) == ([np.inf, 1, 2], [0, 0, 2])
    again = metrics.Ranks.of_means(missed.means, whole.tied)
    assert (again.ahead.tolist(), again.tied.tolist()) == ([np.inf, 1, 2], [0, 0, 2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_an_error(value: float) -> None:
    scores = np.zeros((2, 3))
    scores[1, 2] = value
    everything = np.ones((2, 3), dtype=bool)
    with pytest.raises(EvaluationError, match="1 of 2 users"):
        metrics.ranks(scores, np.array([0, 0]), everything)
    with pytest.raises(EvaluationError, match="1 of 2 users"):
        metrics.ranks(scores, np.array([0, 2]), np.zeros((2, 3), dtype=bool))
    masked = everything.copy()
    masked[1, 2] = False
    np.testing.assert_array_equal(metrics.ranks(scores, np.array([0, 0]), masked).means, [1.0, 0.5])


def test_hits_and_gains_by_hand() -> None:
    # Stored by an earlier version, without the ties: a rank of 2.5 counts as it did then.
    rank = metrics.Ranks.of_means(np.array([0.0, 1.0, 2.5, 9.5, 10.0, np.inf]))
    np.testing.assert_array_equal(metrics.hits(rank, 10), [1, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(metrics.gains(rank, 10)[:2], [1.0, 1 / math.log2(3)])
    np.testing.assert_allclose(metrics.gains(rank, 10)[2:], [1 / math.log2(4.5), 1 / math.log2(11.5), 0, 0])
    np.testing.assert_array_equal(metrics.hits(rank, 1), [1, 0, 0, 0, 0, 0])


def test_coverage_counts_every_item_once() -> None:
    assert metrics.coverage([np.array([[0, 1], [1, -1]]), np.array([[3, 0]])], 6) == 0.5
    assert metrics.coverage([], 4) == 0.0


def test_a_system_against_itself_has_the_ratio_one() -> None:
    values = np.random.default_rng(0).random(50)
    drawn = metrics.resampled_means(np.stack([values, values, 2 * values], axis=1), resamples=200)
    same = metrics.ratio_interval(values, values, drawn[:, 0], drawn[:, 1])
    twice = metrics.ratio_interval(2 * values, values, drawn[:, 2], drawn[:, 1])
    assert (same.ratio, same.low, same.high) == pytest.approx((1, 1, 1))
    assert (twice.ratio, twice.low, twice.high) == pytest.approx((2, 2, 2))


def test_the_bootstrap_has_the_standard_error_of_a_mean() -> None:
    values = np.repeat([0.0, 1.0], 200)[:, None]
    drawn = metrics.resampled_means(values, resamples=4000, seed=3)
    assert drawn.shape == (4000, 1)
    assert drawn.mean() == pytest.approx(0.5, abs=0.002)
    assert drawn.std() == pytest.approx(math.sqrt(0.25 / 400), rel=0.05)


def test_a_baseline_of_nothing_has_no_ratio() -> None:
    nothing = np.zeros(4)
    drawn = metrics.resampled_means(np.stack([np.ones(4), nothing], axis=1), resamples=10)
    interval = metrics.ratio_interval(np.ones(4), nothing, drawn[:, 0], drawn[:, 1])
    assert math.isnan(interval.ratio)
    assert math.isnan(interval.low)


def test_resampling_needs_users() -> None:
    with pytest.raises(EvaluationError, match="at least one user"):
        metrics.resampled_means(np.zeros((0, 2)))
