"""Cuts users' histories into training windows in which every position predicts the next item."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from training.data.sequences import Sequences


def training_windows(
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
        (windows, L + 1) int64 item rows, oldest first, right-padded with −1, at least two events each.
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
    source = train.offsets[users][:, None] + np.where(filled, position, 0)
    return np.where(filled, train.rows[source], -1) if len(users) else np.full((0, length + 1), -1, dtype=np.int64)


def batches(windows: NDArray[np.int64], size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Windows in random order.

    Args:
        windows: (windows, L + 1).
        size: windows per batch; the last batch may be smaller.
        rng: draws the order.

    Yields:
        (≤ size, ≤ L + 1) int64, cut to the longest window of the batch.
    """
    order = rng.permutation(len(windows))
    for start in range(0, len(order), size):
        batch = windows[order[start : start + size]]
        yield batch[:, : int((batch >= 0).sum(axis=1).max())]
