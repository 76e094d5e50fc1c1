"""Adds item-to-item lists to the results of a search by slots, exactly.

No list takes anything from a score. So the best k items by the whole score are among the best k by slots and the items
in the lists of the history. An item that only a list names has a slot score of at most that of the last item found by
slots. This bounds its whole score, and most such items are dropped before their parts are summed exactly or their
vectors are read (:mod:`index.lists.list_entries`).

The vectors of the rows found by slots and of the items to which the lists add the most are read and scored together.
The k-th best score then says what the lists must add at least to any other item. Seldom does one reach it.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from index.lists.list_entries import ListedItems
from index.lists.list_query import ListQuery
from index.lists.list_scores import ListScores
from index.search.scoring import ReadVectors, best_of, gather, padded, whole_scores

_STRONGEST = 4  # times k items of the lists are scored first; with 3 most batches look again at 50 neighbours
_ABOVE_0 = np.array(5e-324)  # the smallest number: what adds 0 is not listed
_INFINITY = np.array(np.inf, dtype=np.float32)
_ROUNDING = 1e-6  # relative, more than that of float32

_Scored = tuple[NDArray[np.int64], NDArray[np.float32]]


class ListSearch:
    """Ranks by slots and lists together; immutable, any number of threads may use it.

    Args:
        scores: scores by lists.
        vectors: (n, Σd) stored vectors, may be memory-mapped.
    """

    def __init__(self, scores: ListScores, vectors: NDArray[np.floating]) -> None:
        self._scores = scores
        self._vectors = vectors

    def best(
        self,
        queries: NDArray[np.float32],
        histories: Sequence[ListQuery | None],
        found: NDArray[np.int64],
        k: int,
        findable: NDArray[np.bool_] | None,
        read: ReadVectors | None = None,
    ) -> _Scored:
        """The best k rows by slots and lists.

        Args:
            queries: (B, Σd) float32, slot weights already multiplied in.
            histories: B.
            found: (B, c) int64 the best rows by slots alone in any order, different, padded with −1 at the end.
            k: at least 1.
            findable: (n,) bool rows that may be returned; None: all. The rows that were found are among them.
            read: returns the vectors of found and listed items; called at most twice, with rows that may repeat. None:
                the stored ones are read.

        Returns:
            (B, k) rows and scores, as of :func:`index.search.scoring.rescore`.

        Raises:
            SearchError: a row of a history outside the catalogue.
        """
        read = read or partial(gather, self._vectors)
        entries = self._scores.entries(histories, found)
        least = np.maximum(entries.strongest(_STRONGEST * k), _ABOVE_0)
        listed = entries.items_in(least)
        if not len(listed.rows):
            return padded(found[:, :0], np.zeros((len(found), 0), dtype=np.float32), k)
        kept = listed.parts >= least.take(listed.numbers)
        if findable is not None:
            kept &= findable.take(listed.rows)
        kept |= listed.found
        rows, parts, by_slots, filled = listed.in_lines(kept, len(queries))
        scores = whole_scores(queries, read(rows))
        lowest = np.minimum.reduce(np.where(by_slots, scores, _INFINITY), axis=1)
        scores += parts
        best = _first(rows, _without(scores, filled), k)
        bound = best[1][:, -1]
        reach = _reach(bound, lowest)
        if all(part >= seen for part, seen in zip(reach, least.tolist(), strict=True)):
            self._keep_parts(histories, listed, entries.of_a_list, best[0])
            return best
        listed = entries.items_in(np.maximum(reach, _ABOVE_0))
        kept = (listed.parts < least.take(listed.numbers)) & (listed.parts > 0) & ~listed.found
        kept &= lowest.take(listed.numbers) + listed.parts >= bound.take(listed.numbers)
        if findable is not None:
            kept &= findable.take(listed.rows)
        if not kept.any():
            return best
        rows, scores, _, filled = listed.in_lines(kept, len(queries))
        scores = _without(scores + whole_scores(queries, read(rows)), filled)
        if filled is not None:
            rows[filled] = -1
        return best_of(np.concatenate((best[0], rows), axis=1), np.concatenate((best[1], scores), axis=1), k)

    def _keep_parts(
        self, histories: Sequence[ListQuery | None], listed: ListedItems, of_a_list: int, rows: NDArray[np.int64]
    ) -> None:
        """Keep what each list adds to the rows, (B, k) int64, for histories that keep it; not if a row is −1."""
        if not any(history is not None and history.found is not None for history in histories):
            return
        if rows[:, -1].min() < 0:
            return
        items, lists = self._scores.lists.items, len(self._scores.lists.lists)
        keys, wanted = listed.rows, rows
        if len(histories) > 1:
            keys, wanted = keys + listed.numbers * items, rows + (np.arange(len(histories)) * items)[:, None]
        parts = listed.of_lists(keys.searchsorted(wanted.reshape(-1)), lists, of_a_list).reshape(*rows.shape, lists)
        for history, own, of_own in zip(histories, rows, parts, strict=True):
            if history is not None and history.found is not None:
                history.found.add(own, of_own)


def _reach(bound: NDArray[np.float32], lowest: NDArray[np.float32]) -> list[float]:
    """For each query, what the lists must add at least to an item that was not found by slots."""
    return [
        last - low - _ROUNDING * (abs(last) + abs(low))
        for last, low in zip(bound.tolist(), lowest.tolist(), strict=True)
    ]


def _without(scores: NDArray[np.float32], filled: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """The scores, −inf where a line is filled up."""
    if filled is not None:
        scores[filled] = -np.inf
    return scores


def _first(rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> _Scored:
    """The best k, as :func:`index.search.scoring.best_of`, of rows that ascend within a query; −inf: no row."""
    queries, width = scores.shape
    if queries == 1:  # sorted whole in fewer calls
        order = (-scores).argsort(axis=1, kind="stable")[:, :k]
        return padded(rows.take(order), scores.take(order), k)
    if width > k:
        bound = np.partition(scores, width - k, axis=1)[:, width - k, None]
        places = (scores >= bound).reshape(-1).nonzero()[0]
        if len(places) == queries * k and float(bound.min()) > -np.inf:
            lines = places.reshape(queries, k)
            order = (-scores.take(lines)).argsort(axis=1, kind="stable")
            best = lines.take(order + (np.arange(queries) * k)[:, None])
            return rows.take(best), scores.take(best)
    return best_of(np.where(scores > -np.inf, rows, -1), scores, k)
