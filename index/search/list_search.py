"""Adds item-to-item lists to the results of a search by slots, exactly.

No list takes anything from a score. So the best k items by the whole score are among the best k by slots and the items
in the lists of the history. An item that only a list names has a slot score of at most that of the last item found by
slots. This bounds its whole score, and most such items are dropped before their vectors are read.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.items.slots import SlotLayout
from index.lists.list_query import ListQuery
from index.lists.list_scores import ListedItems, ListScores
from index.search.scoring import best_of, gather, slot_scores

_BLOCK_ROWS = 256  # their vectors and queries fit the processor's cache

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
    ) -> _Scored:
        """The best k rows by slots and lists.

        Args:
            queries: (B, Σd) float32, slot weights already multiplied in.
            histories: B.
            found: the best rows by slots alone, (B, c) int64 padded with −1, c ≥ k, and their scores, (B, c) float32
                padded with −inf, as :func:`index.search.scoring.rescore` returns them.
            k: at least 1.
            findable: (n,) bool rows that may be returned; None: all.

        Returns:
            (B, k) rows and scores, as of :func:`index.search.scoring.rescore`.

        Raises:
            SearchError: a row of a history outside the catalogue.
        """
        listed = self._scores.listed(histories)
        if findable is not None:
            listed = listed.where(findable)
        rows, scores = found
        if not len(listed.keys):
            return rows[:, :k], scores[:, :k]
        lowest = np.where(rows >= 0, scores, np.inf).min(axis=1, keepdims=True)
        whole, left = self._add(listed, rows, scores)
        candidates, parts = _padded(listed.rows, left, listed.offsets)
        first = self._strongest(queries, candidates, parts, k)
        rows, scores = np.hstack((rows, first[0])), np.hstack((whole, first[1]))
        bound = np.partition(scores, -k, axis=1)[:, -k, None]
        reach = (parts > 0) & (lowest + parts >= bound)
        if reach.any():
            rest = self._reaching(queries, candidates, parts, reach, bound[:, 0])
            rows, scores = np.hstack((rows, rest[0])), np.hstack((scores, rest[1]))
        return best_of(rows, scores, k)

    def _add(
        self, listed: ListedItems, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Whole scores of the found rows, and the parts of all listed items, 0 for those that were found."""
        keys = rows + np.arange(len(rows))[:, None] * self._scores.lists.items
        places = np.minimum(np.searchsorted(listed.keys, keys), len(listed.keys) - 1)
        known = (listed.keys[places] == keys) & (rows >= 0)
        left = listed.parts.copy()
        left[places[known]] = 0.0
        return scores + np.where(known, listed.parts[places], np.float32(0.0)), left

    def _strongest(
        self, queries: NDArray[np.float32], rows: NDArray[np.int64], parts: NDArray[np.float32], k: int
    ) -> _Scored:
        """Rows and whole scores of the k items with the largest parts of each query; sets their parts to 0."""
        if k < rows.shape[1]:
            chosen = np.argpartition(parts, -k, axis=1)[:, -k:]
            line = np.arange(len(rows))[:, None]
            strongest, own = rows[line, chosen], parts[line, chosen]
            parts[line, chosen] = 0.0
        else:
            strongest, own = rows, parts.copy()
            parts[:] = 0.0
        scores = slot_scores(queries, gather(self._vectors, strongest), self._layout).sum(axis=2) + own
        return np.where(own > 0, strongest, -1), np.where(own > 0, scores, np.float32(-np.inf))

    def _reaching(
        self,
        queries: NDArray[np.float32],
        rows: NDArray[np.int64],
        parts: NDArray[np.float32],
        reach: NDArray[np.bool_],
        bound: NDArray[np.float32],
    ) -> _Scored:
        """Rows and whole scores, padded, of the items marked by ``reach``, (B, c) bool, that reach ``bound``, (B,)."""
        numbers, columns = np.nonzero(reach)
        chosen, own = rows[numbers, columns], parts[numbers, columns]
        for start in range(0, len(chosen), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            vectors = gather(self._vectors, chosen[part, None])
            own[part] += slot_scores(queries[numbers[part]], vectors, self._layout).sum(axis=2)[:, 0]
        best = own >= bound[numbers]
        offsets = np.searchsorted(numbers[best], np.arange(len(queries) + 1))
        return _padded(chosen[best], own[best], offsets, -np.inf)


def _padded(
    rows: NDArray[np.int64], values: NDArray[np.float32], offsets: NDArray[np.int64], empty: float = 0.0
) -> _Scored:
    """One line for each query: (B, c) rows padded with −1, and values padded with ``empty``."""
    if len(offsets) == 2:
        return rows[None], values[None]
    sizes = np.diff(offsets)
    filled = np.arange(sizes.max()) < sizes[:, None]
    padded = np.full(filled.shape, -1, dtype=np.int64), np.full(filled.shape, empty, dtype=np.float32)
    padded[0][filled], padded[1][filled] = rows, values
    return padded
