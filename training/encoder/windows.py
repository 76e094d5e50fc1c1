"""Cuts users' histories into training windows in which every position predicts the next item."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from training.data.sequences import Sequences

_POOLED_BATCHES = 64
_STEPS_OF_AN_EPOCH = 160
_FEWEST_STEPS = 64  # of an epoch: with fewer, warm-up and averaging take most of a fit of few histories


def rows_of(train: Sequences, events: NDArray[np.int64]) -> NDArray[np.int64]:
    """The item rows of events.

    Args:
        train: training histories.
        events: places in ``train.rows``, −1 for none.

    Returns:
        int64 of the same shape, −1 for none.
    """
    return np.where(events >= 0, train.rows[events], -1) if events.size else events


def weights_of(train: Sequences, events: NDArray[np.int64]) -> NDArray[np.float32] | None:
    """The weights of events, 0 for none; None if all weigh the same. Arguments as for :func:`rows_of`."""
    if train.weights is None:
        return None
    return np.where(events >= 0, train.weights[events], np.float32(0))


def shown_of(train: Sequences, events: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The items shown before each event, −1 for none; None if none is known. Arguments as for :func:`rows_of`.

    Returns:
        int64 of the same shape with one more axis.
    """
    if train.shown is None:
        return None
    return np.where((events >= 0)[..., None], train.shown[events], -1)


def window_events(
    train: Sequences, length: int, *, reversed_share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Cut every history into windows, each pair of neighbours in exactly one of them.

    The cuts of a long history are drawn again on each call, so that over the epochs an item is predicted from
    histories of every length.

    Args:
        train: training histories; those of fewer than two events give no window.
        length: longest history L to learn from.
        reversed_share: share of the windows reversed in time. With few events it doubles the pairs of neighbours
            that are seen.
        rng: draws the cuts and the windows to reverse.

    Returns:
        (windows, L + 1) int64 places in ``train.rows``, oldest first, right-padded with −1, at least two events each.
    """
    sizes = train.lengths
    first = np.where(sizes > length + 1, rng.integers(0, length, size=len(sizes)), 0)
    # Cuts of a user lie at first, first + L, …; the window before the first cut is short (or empty, and left out).
    counts = np.where(sizes >= 2, (np.maximum(sizes - 1 - first, 0) + length - 1) // length + (first > 0), 0)
    users = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = first[users] + (number - (first[users] > 0)) * length
    end = np.minimum(begin + length + 1, sizes[users])
    begin = np.maximum(begin, 0)
    column = np.arange(length + 1)[None, :]
    filled = column < (end - begin)[:, None]
    is_reversed = (rng.random(len(users)) < reversed_share)[:, None]
    position = np.where(is_reversed, (end - 1)[:, None] - column, begin[:, None] + column)
    return np.where(filled, train.offsets[users][:, None] + position, -1)


def automatic_batch_size(train: Sequences, length: int) -> int:
    """Windows of a step so that an epoch has about 160 steps, of few histories 64 or what steps of 32 windows give.

    Args:
        train: training histories.
        length: longest history L to learn from.

    Returns:
        A power of two between 32 and 1,024.
    """
    windows = int((-(-(train.lengths[train.lengths >= 2] - 1) // length)).sum())
    usual, most = (round(math.log2(max(windows, 1) / steps)) for steps in (_STEPS_OF_AN_EPOCH, _FEWEST_STEPS))
    return int(2 ** min(np.clip(usual, 7, 10), max(most, 5)))


def batches(windows: NDArray[np.int64], size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Windows in random order, those of about the same length together, so that little of a batch is padding.

    All batches have about the same number of targets, so that a target counts the same in each. Windows are shuffled
    and sorted by length within pools of 64 batches; the batches are shuffled again.

    Args:
        windows: (windows, L + 1), at least two events each.
        size: windows of a batch on average; batches of short windows have more.
        rng: draws the order.

    Yields:
        (windows of the batch, ≤ L + 1) int64, cut to the longest of them.
    """
    if not len(windows):
        return
    order, lengths = rng.permutation(len(windows)), (windows >= 0).sum(axis=1)
    targets = max(1, round(float((lengths - 1).mean()) * size))
    made: list[NDArray[np.int64]] = []
    for start in range(0, len(order), _POOLED_BATCHES * size):
        pool = order[start : start + _POOLED_BATCHES * size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        number = (np.cumsum(lengths[pool] - 1) - 1) // targets
        made += np.split(pool, np.flatnonzero(np.diff(number)) + 1)
    for place in rng.permutation(len(made)):
        rows = made[place]
        yield windows[rows, : int(lengths[rows].max())]
