"""Pairs and windows of small histories."""

from itertools import islice

import numpy as np
import pytest

from training.data.sequences import Sequences
from training.data.training_pairs import TrainingPairs
from training.errors import DatasetError


def histories(*rows: list[int]) -> Sequences:
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    joined = np.concatenate([np.array(row, dtype=np.int64) for row in rows])
    return Sequences([f"u{n}" for n in range(len(rows))], offsets.astype(np.int64), joined)


PAIRS = TrainingPairs.of(histories([10, 11, 12, 13], [20], [30, 31], []))


def test_every_event_with_something_before_it_is_a_pair() -> None:
    assert list(zip(PAIRS.users.tolist(), PAIRS.places.tolist(), strict=True)) == [(0, 1), (0, 2), (0, 3), (2, 1)]
    assert len(PAIRS) == 4


def test_without_a_pair_there_is_nothing_to_train_on() -> None:
    with pytest.raises(DatasetError, match="at least 2 training events"):
        TrainingPairs.of(histories([1], [2]))


def test_the_last_event_of_a_window_alone() -> None:
    long, short = PAIRS.windows(np.array([2, 3]), 2, every=False)
    assert long.rows.tolist() == [11, 12]  # the newest two before 13
    assert long.lengths.tolist() == [2]
    assert long.targets.tolist() == [13]
    assert long.own.tolist() == [10, 11, 12]  # all that came before is masked, also what is not read
    assert (short.rows.tolist(), short.targets.tolist(), short.own.tolist()) == ([30], [31], [30])


def test_every_event_of_a_window() -> None:
    (window,) = PAIRS.windows(np.array([2]), 3, every=True)
    assert window.rows.tolist() == [10, 11, 12]
    assert window.lengths.tolist() == [1, 2, 3]
    assert window.targets.tolist() == [11, 12, 13]
    assert window.own.tolist() == [10, 11, 12, 13]


def test_a_pass_shows_every_pair_once_in_a_fresh_order() -> None:
    pairs = TrainingPairs.of(histories(list(range(41))))
    numbers = np.concatenate(list(islice(pairs.batches(10, seed=3), 8)))
    first, second = numbers[:40], numbers[40:]
    assert sorted(first.tolist()) == list(range(40))
    assert sorted(second.tolist()) == list(range(40))
    assert first.tolist() != second.tolist()


def test_the_order_depends_on_seed_and_step_alone() -> None:
    pairs = TrainingPairs.of(histories(list(range(24))))
    whole = list(islice(pairs.batches(7, seed=3), 9))
    resumed = list(islice(pairs.batches(7, seed=3, first_step=4), 5))
    for went, goes in zip(whole[4:], resumed, strict=True):
        np.testing.assert_array_equal(went, goes)
    other = next(pairs.batches(7, seed=4))
    assert other.tolist() != whole[0].tolist()


def test_a_batch_may_be_larger_than_all_pairs() -> None:
    batch = next(PAIRS.batches(9, seed=0))
    assert np.bincount(batch, minlength=4).tolist() in ([2, 2, 2, 3], [2, 2, 3, 2], [2, 3, 2, 2], [3, 2, 2, 2])
