"""Searches an index of any kind, with filters of any selectivity and exact scores.

An index returns candidates, which are re-scored from the stored vectors, so every kind of index returns the same
scores. What item-to-item lists add is added afterwards.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError
from index.items.slots import SlotLayout
from index.lists.list_query import ListQuery
from index.lists.list_scores import ListScores
from index.search.brute_force import check_k, check_queries, exact_top_k_among
from index.search.list_search import ListSearch
from index.search.query_plan import (
    OVER_FETCH,
    SPARE,
    Effort,
    SearchStep,
    exact_step,
    plan,
)
from index.search.row_mask import RowMask
from index.search.scoring import ReadVectors, rescore
from index.search.vector_index import VectorIndex


class Searcher:
    """Top-k search over the indexed rows, on any kind of index.

    Args:
        vector_index: the index that returns candidates.
        vectors: (n, Σd) stored vectors of all rows, float16 or float32, may be memory-mapped.
        indexed: (n,) bool, the rows in the index.
        layout: the slots.
        effort: search effort by skew.
        lists: scores by item-to-item lists; None: there are no lists.

    Raises:
        SearchError: the index has other dimensions, or another number of rows than ``indexed``.
    """

    def __init__(
        self,
        vector_index: VectorIndex,
        vectors: NDArray[np.floating],
        indexed: NDArray[np.bool_],
        layout: SlotLayout,
        effort: Effort,
        lists: ListScores | None = None,
    ) -> None:
        rows = int(np.count_nonzero(indexed))
        if vector_index.dim != layout.dim:
            raise SearchError(f"the index has {vector_index.dim} dimensions, the slots {layout.dim}; build it again")
        if vector_index.capabilities.rows != rows:
            raise SearchError(
                f"the index holds {vector_index.capabilities.rows} rows, {rows} have a slot; build it again"
            )
        self._index = vector_index
        self._vectors = vectors
        self._indexed = indexed
        self._count = rows
        self._layout = layout
        self._effort = effort
        self._lists = None if lists is None else ListSearch(lists, vectors)

    def search(
        self,
        queries: NDArray[np.floating],
        k: int,
        allowed: RowMask | NDArray[np.bool_] | None = None,
        histories: Sequence[ListQuery | None] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best k rows per query.

        Args:
            queries: (B, Σd), slot weights already multiplied in.
            k: at least 1; may exceed the number of rows.
            allowed: mask shared by all queries; a plain (n,) bool is counted at every call. None allows all.
            histories: B, whose lists add to the scores; None: no lists are used.

        Returns:
            (B, k) int64 rows padded with −1 and (B, k) float32 scores padded with −inf, descending, ties by lower row.
            Always min(k, allowed and indexed rows) are filled.

        Raises:
            SearchError: a shape, dtype or value breaks a rule, or FAISS fails.
        """
        checked = check_queries(queries, self._layout.dim)
        check_k(k)
        mask = self._row_mask(allowed)
        listed = self._listed(histories, checked.shape[0])
        if checked.shape[0] == 0 or (mask is not None and mask.count == 0):
            return _no_rows(checked.shape[0], k)
        efforts = self._effort.of(checked, self._layout)
        if checked.shape[0] == 1 or (efforts == efforts[0]).all():
            found = self._group(checked, k, mask, int(efforts[0]))
        else:
            found = np.full((checked.shape[0], k + OVER_FETCH), -1, dtype=np.int64)
            for effort in np.unique(efforts):
                members = np.flatnonzero(efforts == effort)
                rows = self._group(checked[members], k, mask, int(effort))
                found[members, : rows.shape[1]] = rows
        return self._scored(checked, listed, found, k, mask)

    def exact(
        self,
        queries: NDArray[np.floating],
        k: int,
        allowed: RowMask | NDArray[np.bool_] | None = None,
        histories: Sequence[ListQuery | None] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As :meth:`search`, but scans every allowed row: the reference for the results of an index.

        Runs on the CPU for any device of the index; most of it is one call that releases the interpreter's lock.
        """
        checked = check_queries(queries, self._layout.dim)
        check_k(k)
        mask = self._row_mask(allowed)
        listed = self._listed(histories, checked.shape[0])
        count = self._count if mask is None else mask.count
        if checked.shape[0] == 0 or count == 0:
            return _no_rows(checked.shape[0], k)
        found = self._candidates(checked, exact_step(self._index.capabilities, k, count), mask)
        return self._scored(checked, listed, found, k, mask)

    def with_lists(
        self,
        queries: NDArray[np.float32],
        found: tuple[NDArray[np.int64], NDArray[np.float32]],
        k: int,
        allowed: RowMask | None,
        histories: Sequence[ListQuery | None] | None,
        read: ReadVectors | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The last step of :meth:`search`, for rows that another store found by slots.

        Args:
            queries: (B, Σd) C-contiguous float32, slot weights already multiplied in.
            found: (B, c) int64 rows padded with −1, c ≥ k, and (B, c) float32 scores by slots padded with −inf, as of
                :func:`index.search.scoring.rescore`; the more of them, the fewer listed items are looked at.
            k: at least 1.
            allowed: as of :meth:`search`.
            histories: as of :meth:`search`.
            read: returns the vectors of found and listed items; called at most twice, with rows that may repeat. None:
                the stored ones are read.

        Returns:
            (B, k) rows and scores, as of :meth:`search`.

        Raises:
            SearchError: a row of a history lies outside the catalogue, or the histories are not B.
        """
        listed = self._listed(histories, queries.shape[0])
        if listed is None or self._lists is None:
            return found[0][:, :k], found[1][:, :k]
        return self._lists.best(queries, listed, found[0], k, self._findable(self._row_mask(allowed)), read)

    def lists_add(self, histories: Sequence[ListQuery | None] | None) -> bool:
        """Whether any list adds to the scores of these histories."""
        return self._lists is not None and any(history is not None for history in histories or ())

    def planned(
        self, query: NDArray[np.float32], k: int, allowed: RowMask | NDArray[np.bool_] | None = None
    ) -> SearchStep:
        """The first step that :meth:`search` would take for one query (Σd,); for benchmarks and reports."""
        effort = int(self._effort.of(check_queries(query[None], self._layout.dim), self._layout)[0])
        return self._plan(k, self._row_mask(allowed), effort)

    def _row_mask(self, allowed: RowMask | NDArray[np.bool_] | None) -> RowMask | None:
        """The mask, counted; None if it allows every indexed row."""
        if isinstance(allowed, np.ndarray):
            allowed = RowMask.of(allowed, self._indexed)
        if allowed is not None and allowed.indexed is not self._indexed:
            raise SearchError("the allowed rows were counted for another bundle; ask this one's `allowed`")
        return None if allowed is None or allowed.count == self._count else allowed

    def _listed(self, histories: Sequence[ListQuery | None] | None, queries: int) -> Sequence[ListQuery | None] | None:
        """The histories; None if no list adds anything."""
        if histories is None or self._lists is None:
            return None
        if len(histories) != queries:
            raise SearchError(f"needs a history or None for each of {queries} queries, got {len(histories)}")
        return None if all(history is None for history in histories) else histories

    def _scored(
        self,
        queries: NDArray[np.float32],
        histories: Sequence[ListQuery | None] | None,
        found: NDArray[np.int64],
        k: int,
        allowed: RowMask | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best k of the rows that were found by slots, (B, c), and of those in lists."""
        if histories is None or self._lists is None:
            return rescore(queries, found, self._vectors, k)
        return self._lists.best(queries, histories, found, k, self._findable(allowed))

    def _findable(self, allowed: RowMask | None) -> NDArray[np.bool_] | None:
        """(n,) bool rows that may be returned; None: all."""
        if allowed is not None:
            return allowed.findable
        return None if self._count == self._indexed.shape[0] else self._indexed

    def _plan(self, k: int, allowed: RowMask | None, effort: int) -> SearchStep:
        count, removed = (self._count, 0) if allowed is None else (allowed.count, allowed.removed)
        return plan(self._index.capabilities, k, count, effort, self._effort, removed)

    def _group(self, queries: NDArray[np.float32], k: int, allowed: RowMask | None, effort: int) -> NDArray[np.int64]:
        """(B, ≤ k + OVER_FETCH) int64 rows for queries of one effort, padded with −1 at the end.

        The search is exact for queries for which the index found too few rows.
        """
        step = self._plan(k, allowed, effort)
        rows = self._candidates(queries, step, allowed)[:, : k + OVER_FETCH]
        if step.path != "index":
            return rows
        count = self._count if allowed is None else allowed.count
        enough = min(k if allowed is None else k + SPARE, count)
        short = np.flatnonzero((rows >= 0).sum(axis=1) < enough)
        if short.size:
            again = self._candidates(queries[short], exact_step(self._index.capabilities, k, count), allowed)
            rows[short] = -1
            rows[short, : again.shape[1]] = again
        return rows

    def _candidates(self, queries: NDArray[np.float32], step: SearchStep, allowed: RowMask | None) -> NDArray[np.int64]:
        """(B, c) int64 allowed rows of the catalogue, in the order of the index, padded with −1 at the end."""
        if step.path == "gather" and allowed is not None:
            return exact_top_k_among(queries, self._vectors, step.fetch, allowed.rows)[0]
        rows = self._index.search(queries, step, allowed)
        if allowed is None or step.path == "scan":
            return rows
        rows = np.where((rows >= 0) & allowed.findable[rows], rows, -1)
        return np.take_along_axis(rows, np.argsort(rows < 0, axis=1, kind="stable"), axis=1)


def _no_rows(queries: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32)
