"""Build the item-to-item lists of a catalogue: by co-occurrence, by the words of the texts, by picture features.

Each is exact and computed in blocks of items, so memory stays bounded; equal similarities go by row, so the result is
the same everywhere. Words and pictures compare every item with every other: the time grows with the square of the
catalogue.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from index.lists.item_lists import CO, LOOK, WORDS, ItemList, compressed
from training.data.sequences import Sequences
from training.embedding.baseline_features import term_weights
from training.ranking.baselines import WINDOW

_ENTRIES_PER_BLOCK = 1 << 23
_MOST_ROWS = 512

Progress = Callable[[int], None]
"""Called after every block with the number of items that are done."""
_Neighbours = list[tuple[NDArray[np.int32], NDArray[np.float16]]]


def co_occurrence_list(
    train: Sequences,
    items: int,
    neighbours: int,
    *,
    backward: float = 1.0,
    shrinkage: float = 0.0,
    progress: Progress = lambda _items: None,
) -> ItemList:
    """Items seen near each other by the same users, as :class:`training.ranking.baselines.CoOccurrence` counts them.

    Two events of a user at most 20 apart add 1 / distance to the pair of the older item with the newer one, and
    ``backward`` / distance to that of the newer item with the older one; the sum is divided by √(events of one · events
    of the other) + ``shrinkage``. With ``backward`` 1 the similarity is symmetric; less makes what usually comes next
    more similar. Where events have weights, a pair adds the root of their product times as much, and events are counted
    by their weights; by Cauchy's inequality no similarity is then above what it can be without.

    Args:
        train: training histories.
        items: size of the catalogue n.
        neighbours: most entries of an item N.
        backward: weight of the item that came before, 0 … 1.
        shrinkage: in events, ≥ 0; the more, the less similar are items that are seldom seen, whose sums are uncertain.
        progress: called after every block.
    """
    counts = np.bincount(train.rows, train.weights, items)
    events = _ItemEvents.of(train, items)
    lists: _Neighbours = []
    for first, last in _pair_blocks(np.diff(events.starts), items):
        sums = _pair_sums(events, items, first, last, backward)
        sources = np.repeat(np.arange(first, last), np.diff(sums.indptr))
        sums.data /= np.sqrt(counts[sources] * counts[sums.indices]) + shrinkage
        lists += _nearest_sparse(sums, first, neighbours)
        progress(last)
    return compressed(CO, lists)


def words_list(texts: Sequence[str | None], neighbours: int, *, progress: Progress = lambda _items: None) -> ItemList:
    """Items whose texts share telling words: the cosine of TF-IDF vectors of words and word pairs.

    Args:
        texts: text per item; None for none.
        neighbours: most entries of an item N.
        progress: called after every block.
    """
    weights, rows = term_weights(texts)
    items = len(texts)
    place = csr_matrix((np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), shape=(items, len(rows)))
    weights = csr_matrix(place @ weights, dtype=np.float32)
    transposed = weights.T.tocsr()
    lists: _Neighbours = []
    for first, last in _row_blocks(items):
        lists += _nearest_sparse(csr_matrix(weights[first:last] @ transposed), first, neighbours)
        progress(last)
    return compressed(WORDS, lists)


def look_list(features: NDArray[np.floating], neighbours: int, *, progress: Progress = lambda _items: None) -> ItemList:
    """Items whose pictures look alike: the cosine of picture features.

    Args:
        features: (n, d), zero rows for items without a picture.
        neighbours: most entries of an item N.
        progress: called after every block.
    """
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    units = np.divide(features, lengths, out=np.zeros(features.shape), where=lengths > 0).astype(np.float32)
    lists: _Neighbours = []
    for first, last in _row_blocks(len(units)):
        for row, cosines in enumerate(units[first:last] @ units.T, start=first):
            lists.append(_nearest(row, np.arange(len(units)), cosines, neighbours))
        progress(last)
    return compressed(LOOK, lists)


def _row_blocks(items: int) -> Iterator[tuple[int, int]]:
    """First and last row of blocks whose products with the whole catalogue fit into bounded memory."""
    size = int(np.clip(_ENTRIES_PER_BLOCK // max(items, 1), 1, _MOST_ROWS))
    for first in range(0, items, size):
        yield first, min(first + size, items)


def _pair_blocks(counts: NDArray[np.int64], items: int) -> Iterator[tuple[int, int]]:
    """First and last row of blocks whose items have a bounded number of pairs."""
    pairs = np.cumsum(counts) * 2 * WINDOW
    first = 0
    while first < items:
        before = int(pairs[first - 1]) if first else 0
        last = int(np.searchsorted(pairs, before + _ENTRIES_PER_BLOCK, side="right"))
        last = min(max(last, first + 1), items)
        yield first, last
        first = last


@dataclass(frozen=True)
class _ItemEvents:
    """All events, found by item.

    Attributes:
        rows: (events,) int64 item of each event; a user's are next to each other, oldest first.
        users: (events,) int64.
        roots: (events,) float64 roots of the weights; None: all weigh 1.
        by_item: (events,) int64 places of the events, sorted by item.
        starts: (n + 1,) int64; item i has the events ``by_item[starts[i] : starts[i + 1]]``.
    """

    rows: NDArray[np.int64]
    users: NDArray[np.int64]
    roots: NDArray[np.float64] | None
    by_item: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, train: Sequences, items: int) -> "_ItemEvents":
        users = np.repeat(np.arange(len(train)), train.lengths)
        roots = None if train.weights is None else np.sqrt(train.weights.astype(np.float64))
        starts = np.concatenate([[0], np.cumsum(np.bincount(train.rows, minlength=items))])
        return cls(train.rows, users, roots, np.argsort(train.rows, kind="stable"), starts)

    def places(self, first: int, last: int) -> NDArray[np.int64]:
        """Places of the events of items ``first`` … ``last − 1``, ascending."""
        return np.sort(self.by_item[self.starts[first] : self.starts[last]])


def _pair_sums(events: _ItemEvents, items: int, first: int, last: int, backward: float) -> csr_matrix:
    """(last − first, n) weighted sums of 1 / distance over the pairs of items ``first`` … ``last − 1`` with others."""
    rows, own = events.rows, events.places(first, last)
    sources, others, weights = [], [], []
    for distance in range(1, WINDOW + 1):
        for step, weight in ((distance, 1.0), (-distance, backward)):
            places = own[(own + step >= 0) & (own + step < len(rows))]
            near = places + step
            chosen = (events.users[places] == events.users[near]) & (rows[places] != rows[near])
            places, near = places[chosen], near[chosen]
            sources.append(rows[places] - first)
            others.append(rows[near])
            both = 1.0 if events.roots is None else events.roots[places] * events.roots[near]
            weights.append(np.broadcast_to(both * (weight / distance), places.shape))
    pairs = (np.concatenate(weights), (np.concatenate(sources), np.concatenate(others)))
    return csr_matrix(pairs, shape=(last - first, items))


def _nearest_sparse(block: csr_matrix, first: int, neighbours: int) -> _Neighbours:
    """The nearest of every row of a sparse block of similarities, whose first row is item ``first``."""
    lists = []
    for number in range(block.shape[0]):
        part = slice(block.indptr[number], block.indptr[number + 1])
        lists.append(_nearest(first + number, block.indices[part], block.data[part], neighbours))
    return lists


def _nearest(
    row: int, others: NDArray[np.integer], similarities: NDArray[np.floating], neighbours: int
) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """Rows and similarities of the nearest items, by the similarity as it is stored, then by row; without the item."""
    stored = np.minimum(similarities, 1e4).astype(np.float16)  # what a float16 holds; no similarity comes near it
    stored[others == row] = 0
    if len(stored) > neighbours:
        least = np.partition(stored, len(stored) - neighbours)[len(stored) - neighbours]
        chosen = stored >= max(least, np.float16(0))
    else:
        chosen = np.ones(len(stored), dtype=np.bool_)
    chosen &= stored > 0
    some, values = others[chosen].astype(np.int32), stored[chosen]
    order = np.lexsort((some, -values))[:neighbours]
    return some[order], values[order]
