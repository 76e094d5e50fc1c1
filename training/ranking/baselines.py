"""Implements the baselines of the sequence encoder: popularity, co-occurrence, and means of the history."""

# Each baseline scores every item of the catalogue for histories of item rows; higher is better. "SASRec on IDs" is
# the sequence encoder itself, trained with ``slots = ["behaviour"]``.

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.items.slots import SlotLayout
from training.data.sequences import Sequences

WINDOW = 20
"""Largest distance, in events, of two items of a user that count as seen together."""
RECENT = 10
"""Newest items of a history that co-occurrence reads."""
RECENCY = 0.7
"""Weight of an item of the history relative to the one after it."""
_PAIRS_PER_BLOCK = 1 << 22


class Ranker(Protocol):
    """A system that scores the whole catalogue."""

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Score every item.

        Args:
            histories: B arrays of item rows, oldest first, at least one each.

        Returns:
            (B, n) float32, finite, higher is better.
        """
        ...


class Popularity:
    """Scores every history with the training counts.

    Args:
        counts: (n,) training events per item.
    """

    def __init__(self, counts: NDArray[np.int64]) -> None:
        self._counts = counts.astype(np.float32)

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32; the same row for every history."""
        return np.tile(self._counts, (len(histories), 1))


class CoOccurrence:
    """Items seen near each other by the same users (item-to-item collaborative filtering, Linden et al., 2003).

    Two events of a user at most 20 apart add 1 / distance to their pair of items, in both directions; the sum is
    divided by √(events of one · events of the other) (cosine). A history scores with its 10 newest items, each with
    0.7 times the weight of the one after it. The constants were chosen on validation.

    Args:
        train: training histories.
        items: size of the catalogue n.
    """

    def __init__(self, train: Sequences, items: int) -> None:
        sources, others, weights = _pairs(train, items)
        counts = np.bincount(train.rows, minlength=items)
        self._items = items
        self._offsets = np.zeros(items + 1, dtype=np.int64)
        np.cumsum(np.bincount(sources, minlength=items), out=self._offsets[1:])
        self._others = others
        self._weights = (weights / np.sqrt(counts[sources] * counts[others])).astype(np.float32)

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32, 0 for an item never seen near one of the history."""
        scored = np.zeros((len(histories), self._items), dtype=np.float32)
        for row, history in zip(scored, histories, strict=True):
            for age, item in enumerate(history[: -RECENT - 1 : -1].tolist()):
                near = slice(self._offsets[item], self._offsets[item + 1])
                row[self._others[near]] += RECENCY**age * self._weights[near]
        return scored


class ItemMean:
    """Inner product with the plain mean of the history's vectors: the slots without the encoder.

    A stored vector has every slot divided by √(slots present). So the products of slots that two items share count more
    for an item with fewer slots: with text and picture as close to the history, an item without behaviour scores
    √(3/2) = 1.22 times in them. Among items with and without behaviour that favours the latter, whatever they contain.
    With the vectors of :func:`unit_slots` the same closeness counts the same, and an absent slot adds 0.

    Args:
        vectors: (n, Σd) stored vectors.
        max_history: newest items of a history that are averaged.
    """

    def __init__(self, vectors: NDArray[np.floating], max_history: int) -> None:
        self._vectors = np.asarray(vectors, dtype=np.float32)
        self._max_history = max_history

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32."""
        queries = np.stack([self._vectors[history[-self._max_history :]].mean(axis=0) for history in histories])
        return np.asarray(queries @ self._vectors.T, dtype=np.float32)


def unit_slots(layout: SlotLayout, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stored vectors with every present slot of length 1, however many an item has.

    Args:
        layout: of the vectors.
        vectors: (n, Σd) stored vectors.
    """
    present = layout.present(vectors).sum(axis=1, dtype=np.float32)
    return np.asarray(vectors * np.sqrt(present)[:, None], dtype=np.float32)


class ContentMean:
    """The sum over text and picture of the cosine with the mean of the history's content: no behaviour, no training.

    Ranks cold items like any others.

    Args:
        vectors: modality → (n, D) embeddings before any projection, rows of length 1, zeros where it is absent.
        max_history: newest items of a history that are averaged.

    Attributes:
        findable: (n,) bool, items with a text or a picture.
    """

    def __init__(self, vectors: Mapping[str, NDArray[np.float32]], max_history: int) -> None:
        self._blocks, self._max_history = list(vectors.values()), max_history
        self.findable: NDArray[np.bool_] = np.any([block.any(axis=1) for block in self._blocks], axis=0)

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32; a modality that the history or an item lacks adds 0."""
        read = [history[-self._max_history :] for history in histories]
        scored = np.zeros((len(read), len(self.findable)), dtype=np.float32)
        for block in self._blocks:
            means = np.stack([block[rows].mean(axis=0) for rows in read])
            scored += (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)) @ block.T
        return scored


def _pairs(train: Sequences, items: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Summed weights of all ordered pairs of different items, sorted by the first."""
    users = np.repeat(np.arange(len(train)), train.lengths)
    keys = np.zeros(0, dtype=np.int64)
    sums = np.zeros(0)
    waiting_keys: list[NDArray[np.int64]] = []
    waiting_weights: list[NDArray[np.float64]] = []
    for distance in range(1, WINDOW + 1):
        same = users[:-distance] == users[distance:]
        first, second = train.rows[:-distance][same], train.rows[distance:][same]
        differ = first != second
        first, second = first[differ], second[differ]
        waiting_keys += [first * items + second, second * items + first]
        waiting_weights += [np.full(2 * len(first), 1.0 / distance)]
        if sum(map(len, waiting_keys)) > _PAIRS_PER_BLOCK or distance == WINDOW:
            keys, sums = _summed([keys, *waiting_keys], [sums, *waiting_weights])
            waiting_keys, waiting_weights = [], []
    return keys // items, keys % items, sums


def _summed(
    keys: Sequence[NDArray[np.int64]], weights: Sequence[NDArray[np.float64]]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    unique, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    return unique, np.bincount(inverse, weights=np.concatenate(weights), minlength=len(unique)).astype(np.float64)
