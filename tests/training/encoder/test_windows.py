"""Training windows, their batches and the automatic batch size."""

from collections.abc import Callable

import numpy as np
import pytest

from training.data.sequences import Sequences
from training.encoder.windows import automatic_batch_size, batches, rows_of, window_events

Make = Callable[[list[list[int]]], Sequences]


def test_windows_hold_every_pair_of_neighbours_once(make_sequences: Make) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        sizes, length = rng.integers(0, 25, 5), int(rng.integers(1, 9))
        starts = np.cumsum(sizes) - sizes
        train = make_sequences([list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)])
        share = float(rng.choice([0.0, 0.5, 1.0]))
        windows = rows_of(train, window_events(train, length, reversed_share=share, rng=rng))
        assert windows.shape[1] == length + 1
        pairs = []
        for window in windows:
            events = window[window >= 0]
            assert len(events) >= 2
            assert (window[len(events) :] == -1).all()
            steps = set(np.diff(events).tolist())
            assert steps == {1} if share == 0 else steps == {-1} if share == 1 else steps in ({1}, {-1})
            pairs += [(min(pair), max(pair)) for pair in zip(events[:-1].tolist(), events[1:].tolist(), strict=True)]
        wanted = [(s + i, s + i + 1) for s, size in zip(starts, sizes, strict=True) for i in range(size - 1)]
        assert sorted(pairs) == wanted


def test_batches_hold_every_window_once_and_about_the_same_number_of_targets() -> None:
    rng = np.random.default_rng(0)
    sizes = np.where(rng.random(1000) < 0.7, 2, rng.integers(3, 12, 1000))
    windows = np.where(np.arange(12) < sizes[:, None], np.arange(1000)[:, None], -1)
    got = list(batches(windows, 16, np.random.default_rng(1)))
    assert sorted(row[0] for batch in got for row in batch.tolist()) == list(range(1000))
    assert all((batch >= 0).any(axis=0).all() for batch in got)  # no wider than needed
    targets = np.array([int((batch[:, 1:] >= 0).sum()) for batch in got])
    wanted = 16 * (sizes - 1).mean()
    assert abs(len(got) - 1000 / 16) <= 2
    assert targets.max() <= wanted + 11
    assert (targets < wanted - 11).sum() <= 1  # the last one
    assert sum(batch[:, 1:].size for batch in got) < 1.2 * targets.sum()
    assert [len(row) for row in batches(windows[:0], 16, rng)] == []


def test_batches_come_in_an_order_that_does_not_follow_length() -> None:
    windows = np.where(np.arange(12) < np.arange(200)[:, None] % 11 + 2, 0, -1)
    widths = [batch.shape[1] for batch in batches(windows, 4, np.random.default_rng(3))]
    assert sorted(widths) != widths
    first, again = (list(batches(windows, 4, np.random.default_rng(7))) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        (1, 32),
        (1_500, 32),
        (4_000, 64),
        (5_700, 64),
        (5_900, 128),
        (20_000, 128),
        (40_000, 256),
        (80_000, 512),
        (10**6, 1024),
    ],
)
def test_the_automatic_batch_size_gives_an_epoch_about_160_steps(users: int, expected: int) -> None:
    offsets = np.arange(users + 1) * 3
    train = Sequences([], offsets, np.zeros(users * 3, dtype=np.int64))
    assert automatic_batch_size(train, 10) == expected
