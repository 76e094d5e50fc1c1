"""Adds item-to-item lists to the results of a search by slots, exactly.

No list takes anything from a score. So the best k items by the whole score are among the best k by slots and the items
in the lists of the history. An item that only a list names has a slot score of at most that of the last item found by
slots. This bounds its whole score, and most such items are dropped before their parts are summed exactly or their
vectors are read (:mod:`index.lists.list_entries`).
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from index.items.slots import SlotLayout
from index.lists.list_entries import ListedItems
from index.lists.list_query import ListQuery
from index.lists.list_scores import ListScores
from index.search.scoring import ReadVectors, best_of, gather, slot_scores

_STRONGEST = 2  # times k items of the lists are scored first; seldom can another be among the best k
_STRONGEST_OF_FEW = 4  # in a batch of fewer than _FEW queries, where a second look at the lists costs more than scores
_FEW = 4
_ROUNDING = 1e-6  # relative, more than that of float32

_Scored = tuple[NDArray[np.int64], NDArray[np.float32]]


class ListSearch:
    """Ranks by slots and lists together; immutable, any number of threads may use it.

    Args:
        scores: scores by lists.
        vectors: (n, Σd) stored vectors, may be memory-mapped.
        layout: the slots.
    """

    def __init__(self, scores: ListScores, vectors: NDArray[np.floating], layout: SlotLayout) -> None:
        self._scores = scores
        self._vectors = vectors
        self._layout = layout

    def best(
        self,
        queries: NDArray[np.float32],
        histories: Sequence[ListQuery | None],
        found: _Scored,
        k: int,
        findable: NDArray[np.bool_] | None,
        read: ReadVectors | None = None,
    ) -> _Scored:
        """The best k rows by slots and lists.

        Args:
            queries: (B, Σd) float32, slot weights already multiplied in.
            histories: B.
            found: the best rows by slots alone, (B, c) int64 padded with −1, c ≥ k, and their scores, (B, c) float32
                padded with −inf, as :func:`index.search.scoring.rescore` returns them.
            k: at least 1.
            findable: (n,) bool rows that may be returned; None: all.
            read: returns the vectors of listed items; called at most twice, with rows padded with −1, whose vectors
                may be any. None: the stored ones are read.

        Returns:
            (B, k) rows and scores, as of :func:`index.search.scoring.rescore`.

        Raises:
            SearchError: a row of a history outside the catalogue.
        """
        entries = self._scores.entries(histories)
        rows, scores = found
        if not len(entries):
            return rows[:, :k], scores[:, :k]
        lowest = np.where(rows >= 0, scores, np.inf).min(axis=1)
        chosen = entries.strongest(k * (_STRONGEST_OF_FEW if len(rows) < _FEW else _STRONGEST))
        line = np.arange(len(rows))[:, None]
        chosen[line, rows & (entries.buckets - 1)] = True
        listed, scores = self._add(entries.items_in(chosen), rows, scores)
        read = read or partial(gather, self._vectors)
        best = self._joined(queries, listed, (rows, scores), lowest, k, findable, read)
        bound = _kth(best[1], k)
        least = bound.astype(np.float64) - lowest - _ROUNDING * (np.abs(bound) + np.abs(lowest))
        rest = (entries.sums >= least[:, None]) & ~chosen
        if rest.any():
            best = self._joined(queries, entries.items_in(rest), best, lowest, k, findable, read)
        return best_of(*best, k)

    def _add(
        self, listed: ListedItems, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> tuple[ListedItems, NDArray[np.float32]]:
        """The listed items without the found rows, and the whole scores of the found rows."""
        if not len(listed.keys):
            return listed, scores
        keys = rows + np.arange(len(rows))[:, None] * self._scores.lists.items
        places = np.minimum(np.searchsorted(listed.keys, keys), len(listed.keys) - 1)
        known = (listed.keys[places] == keys) & (rows >= 0)
        left = np.ones(len(listed.keys), dtype=np.bool_)
        left[places[known]] = False
        return listed.where(left), scores + np.where(known, listed.parts[places], np.float32(0.0))

    def _joined(
        self,
        queries: NDArray[np.float32],
        listed: ListedItems,
        best: _Scored,
        lowest: NDArray[np.float32],
        k: int,
        findable: NDArray[np.bool_] | None,
        read: ReadVectors,
    ) -> _Scored:
        """Rows and whole scores, (B, c), with those of the listed items added that may be among the best k.

        Args:
            queries: (B, Σd) float32.
            listed: none of them in ``best``.
            best: rows and whole scores that are known, (B, ≥ k).
            lowest: (B,) float32, at least the score by slots of any listed item.
            k: at least 1.
            findable: (n,) bool rows that may be returned; None: all.
            read: returns the vectors of rows.
        """
        bound = _kth(best[1], k)
        reach = (lowest[listed.numbers] + listed.parts >= bound[listed.numbers]) & (listed.parts > 0)
        if findable is not None:
            reach &= findable[listed.rows]
        listed = listed.where(reach)
        if not len(listed.keys):
            return best
        rows, scores = _padded(listed, len(queries))
        scores += slot_scores(queries, read(rows), self._layout).sum(axis=2)
        return np.concatenate((best[0], rows), axis=1), np.concatenate((best[1], scores), axis=1)


def _kth(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(B,) the k-th largest score of each query."""
    bounds: NDArray[np.float32] = np.partition(scores, -k, axis=1)[:, -k]
    return bounds


def _padded(listed: ListedItems, queries: int) -> _Scored:
    """One line for each query: (B, c) rows padded with −1, and parts padded with −inf."""
    if queries == 1:
        return listed.rows[None], listed.parts[None]
    sizes = np.bincount(listed.numbers, minlength=queries)
    filled = np.arange(sizes.max()) < sizes[:, None]
    rows, parts = np.full(filled.shape, -1, dtype=np.int64), np.full(filled.shape, -np.inf, dtype=np.float32)
    rows[filled], parts[filled] = listed.rows, listed.parts
    return rows, parts
