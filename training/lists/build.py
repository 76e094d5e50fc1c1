"""Build the item-to-item lists of a catalogue: by co-occurrence, by the words of the texts, by picture features.

Each is computed in blocks of items, so memory stays bounded; equal similarities go by row, so the result is the same
everywhere. Words and pictures compare every item with every other up to a size. Beyond it the time would be hours, as
it grows with the square of the catalogue: there only candidates are compared, so a few of the nearest may be missing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from index.lists.item_lists import CO, LOOK, WORDS, ItemList
from training.data.sequences import Sequences
from training.embedding.baseline_features import term_weights
from training.lists.look_candidates import looks_by_candidates
from training.lists.nearest import (
    NearestItems,
    cost_blocks,
    in_order,
    joined,
    nearest_dense,
    nearest_sparse,
)
from training.lists.word_candidates import words_by_candidates
from training.ranking.baselines import WINDOW

_ENTRIES_PER_BLOCK = 1 << 23
_MOST_ROWS = 512
_ROWS_PER_COPY = 1 << 16
_MOST_PAIRS = 1 << 34
_PAIRS_OF_AN_ITEM = 60_000
_MOST_COMPARED = 1 << 16
_TEXTS_PER_REPORT = 4_096

Progress = Callable[[int], None]
"""Called after every block with the number of items that are done."""


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
    lists = []
    for first, last in _pair_blocks(np.diff(events.starts)):
        sums = _pair_sums(events, items, first, last, backward)
        sources = np.repeat(np.arange(first, last), np.diff(sums.indptr))
        sums.data /= np.sqrt(counts[sources] * counts[sums.indices]) + shrinkage
        lists.append(nearest_sparse(sums, first, neighbours))
        progress(last)
    return joined(CO, lists)


def words_list(
    texts: Sequence[str | None],
    neighbours: int,
    *,
    threads: int | None = None,
    progress: Progress = lambda _items: None,
) -> ItemList:
    """Items whose texts share telling words: the cosine of TF-IDF vectors of words and word pairs.

    Exact while the texts have few pairs with a common term; beyond, candidates are found by the rarer terms
    (:mod:`training.lists.word_candidates`), and their cosines are exact.

    Args:
        texts: text per item; None for none.
        neighbours: most entries of an item N.
        threads: that make blocks at the same time; None for as many as PyTorch has, which ``--threads`` sets. The
            result does not depend on it.
        progress: called after every block, and with 0 while the texts are read.
    """
    weights, rows = term_weights(_ReportedTexts(texts, progress))
    items = len(texts)
    place = csr_matrix((np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), shape=(items, len(rows)))
    weights = csr_matrix(place @ weights, dtype=np.float32)
    threads = threads or torch.get_num_threads()
    pairs = int(np.square(np.bincount(weights.indices), dtype=np.int64).sum())
    if pairs > _MOST_PAIRS:
        limit = max(_PAIRS_OF_AN_ITEM, _MOST_PAIRS // items)
        return words_by_candidates(weights, limit, neighbours, threads=threads, progress=progress)
    transposed = weights.T.tocsr()

    def block(rows: tuple[int, int]) -> tuple[int, NearestItems]:
        first, last = rows
        return last, nearest_sparse(csr_matrix(weights[first:last] @ transposed), first, neighbours)

    lists = []
    for last, part in in_order(block, _row_blocks(items), threads):
        lists.append(part)
        progress(last)
    return joined(WORDS, lists)


class _ReportedTexts(Sequence[str | None]):
    """Texts of which every 4,096th that is read is reported."""

    def __init__(self, texts: Sequence[str | None], progress: Progress) -> None:
        self._texts, self._progress, self._read = texts, progress, 0

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, row: int) -> str | None: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str | None]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str | None] | None:
        self._read += 1
        if self._read % _TEXTS_PER_REPORT == 0:
            self._progress(0)
        return self._texts[row]

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._texts)


def look_list(
    features: NDArray[np.floating],
    neighbours: int,
    *,
    threads: int | None = None,
    progress: Progress = lambda _items: None,
) -> ItemList:
    """Items whose pictures look alike: the cosine of picture features.

    Exact up to 65,536 items; beyond, a graph finds nearly all of the nearest (:mod:`training.lists.look_candidates`).

    Args:
        features: (n, d), zero rows for items without a picture.
        neighbours: most entries of an item N.
        threads: that make blocks at the same time above that size; None for as many as PyTorch has. The result does
            not depend on it.
        progress: called after every block.
    """
    units = _unit_rows(features)
    if len(units) > _MOST_COMPARED:
        return looks_by_candidates(units, neighbours, threads=threads or torch.get_num_threads(), progress=progress)
    lists = []
    others = np.arange(len(units))
    for first, last in _row_blocks(len(units)):
        lists.append(nearest_dense(units[first:last] @ units.T, others[first:last], others, neighbours))
        progress(last)
    return joined(LOOK, lists)


def _unit_rows(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """(n, d) the features divided by their lengths, in blocks; zero rows stay."""
    units = np.zeros(features.shape, np.float32)
    for first in range(0, len(units), _ROWS_PER_COPY):
        part = np.asarray(features[first : first + _ROWS_PER_COPY])
        lengths = np.linalg.norm(part.astype(np.float64), axis=1, keepdims=True)
        units[first : first + len(part)] = np.divide(part, lengths, out=np.zeros(part.shape), where=lengths > 0)
    return units


def _row_blocks(items: int) -> Iterator[tuple[int, int]]:
    """First and last row of blocks whose products with the whole catalogue fit into bounded memory."""
    size = int(np.clip(_ENTRIES_PER_BLOCK // max(items, 1), 1, _MOST_ROWS))
    for first in range(0, items, size):
        yield first, min(first + size, items)


def _pair_blocks(counts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and last row of blocks whose items have a bounded number of pairs."""
    return cost_blocks(counts * 2 * WINDOW, _ENTRIES_PER_BLOCK)


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
