"""Measures an index on evaluation queries: recall and latency by kind of query, and coverage.

Recall compares scores: a found row is correct if its score reaches that of the k-th exact row. So any of several rows
with equal scores is correct, such as the items that lack the only slot with a weight.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.items.eval_queries import EvaluationQueries
from index.items.slots import SlotLayout
from index.lists.list_query import ListQuery
from index.lists.list_scores import ListScores
from index.search.brute_force import exact_top_k, exact_top_k_each
from index.search.encoder import OnnxSequenceEncoder
from index.search.query_plan import OVER_FETCH
from index.search.row_mask import RowMask
from index.search.scoring import gather, rescore, slot_scores
from index.search.searcher import Searcher

PLAIN = "plain"
FILTER_SHARES = (0.5, 0.1, 0.01, 0.001)  # shares of rows that the random filters allow

_DEEP_FACTOR = 10  # times k, as pages and diversified results request
_DEEP_QUERIES = 64
_EXCLUDED_PART = 100  # a filter per query excludes the nearest hundredth of all rows …
_MOST_EXCLUDED = 10_000  # … but at most this many
_EXCLUDING_QUERIES = 32
_TIMED_QUERIES = 200


def evaluation_histories(
    indexed: NDArray[np.bool_], evaluation_queries: EvaluationQueries, limit: int
) -> list[NDArray[np.int64]]:
    """An even sample of the histories of the evaluation queries, or single items if there are none.

    Args:
        indexed: (n,) bool, rows with a slot; at least one.
        evaluation_queries: held-out histories, may be empty.
        limit: most histories, at least 1.

    Returns:
        p arrays of rows, oldest first, 1 ≤ p ≤ limit.
    """
    if len(evaluation_queries):
        chosen = np.unique(np.linspace(0, len(evaluation_queries) - 1, limit).astype(np.int64))
        return [evaluation_queries.history(int(query)) for query in chosen]
    rows = np.flatnonzero(indexed)
    positions = np.unique(np.linspace(0, len(rows) - 1, limit).astype(np.int64))
    return [rows[[position]] for position in positions]


def encoded(
    encoder: OnnxSequenceEncoder, vectors: NDArray[np.floating], histories: Sequence[NDArray[np.int64]]
) -> NDArray[np.float32]:
    """Encode histories as plain queries.

    Args:
        encoder: encodes their newest items.
        vectors: (n, Σd) stored vectors.
        histories: p arrays of rows, oldest first.

    Returns:
        (p, Σd) float32.
    """
    return encoder.encode([vectors[history[-encoder.max_history :]] for history in histories])


def kind_weights(layout: SlotLayout, presence: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Slot weights of every kind of query: plain, each slot weighted three times, and each slot alone.

    Args:
        layout: the slots.
        presence: number of items per slot; a slot without items gets no kind.

    Returns:
        Weight by slot for ``plain``, ``text x3``, ``text alone`` …; only ``plain`` if there is one slot.
    """
    kinds: dict[str, dict[str, float]] = {PLAIN: {}}
    if len(layout.slots) == 1:
        return kinds
    for name in layout.names:
        if presence.get(name, 0):
            kinds[f"{name} x3"] = {name: 3.0}
            kinds[f"{name} alone"] = {other: 0.0 for other in layout.names if other != name}
    return kinds


def query_kinds(
    queries: NDArray[np.float32], layout: SlotLayout, presence: Mapping[str, int]
) -> dict[str, NDArray[np.float32]]:
    """Queries of every kind.

    Args:
        queries: (p, Σd) plain queries.
        layout: the slots.
        presence: number of items per slot.

    Returns:
        (p, Σd) float32 per kind of :func:`kind_weights`.
    """
    weights = kind_weights(layout, presence)
    return {kind: queries * layout.weights(own) if own else queries for kind, own in weights.items()}


def random_filters(indexed: NDArray[np.bool_], seed: int = 0) -> dict[str, RowMask | None]:
    """Filters that allow random shares of the indexed rows, independent of the queries.

    Args:
        indexed: (n,) bool, the rows in the index.
        seed: seed of the choice.

    Returns:
        Mask by name, ``filtered 50 %`` … ``filtered 0.1 %``, without filters that would allow no row.
    """
    rows = np.flatnonzero(indexed)
    order = np.random.default_rng(seed).permutation(rows)
    filters: dict[str, RowMask | None] = {}
    for share in FILTER_SHARES:
        count = round(share * rows.shape[0])
        if count:
            mask = np.zeros(indexed.shape[0], dtype=np.bool_)
            mask[order[:count]] = True
            filters[f"filtered {100 * share:g} %"] = RowMask.of(mask, indexed)
    return filters


@dataclass(frozen=True, eq=False)
class QuerySet:
    """Queries of one kind, with their filters and the score that a correct result must reach.

    Attributes:
        queries: (p, Σd) float32.
        k: number of results, at least 1, at most the number of allowed rows.
        min_scores: (p,) float32 score of the k-th exact row.
        exact_rows: (p, m) int64 the exact rows by slots, at least k of them; −1 = none.
        allowed: filter shared by all queries; None for none.
        excluded: (p, m) int64 rows that each query's own filter excludes; None for none.
        indexed: (n,) bool, the rows in the index; only needed with ``excluded``.
        histories: for each query the history whose item-to-item lists add to the scores; None for no lists.
    """

    queries: NDArray[np.float32]
    k: int
    min_scores: NDArray[np.float32]
    exact_rows: NDArray[np.int64]
    allowed: RowMask | None = None
    excluded: NDArray[np.int64] | None = None
    indexed: NDArray[np.bool_] | None = None
    histories: Sequence[ListQuery] | None = None

    @property
    def unfiltered(self) -> bool:
        """Whether the queries have no filter."""
        return self.allowed is None and self.excluded is None

    def recall(self, searcher: Searcher, chosen: NDArray[np.int64] | None = None) -> float:
        """Recall@k of a searcher, 0 … 1; higher is better.

        Args:
            searcher: the searcher to measure.
            chosen: (c,) int64 positions of the queries to use; None for all.
        """
        positions = np.arange(self.queries.shape[0]) if chosen is None else chosen
        if self.excluded is None:
            scores = self.search(searcher, positions, self.allowed)[1]
            return float((scores >= self.min_scores[positions, None]).mean())
        hits = [
            (self.search(searcher, positions[[number]], allowed)[1][0] >= self.min_scores[positions[number]]).mean()
            for number, allowed in enumerate(self.filters(positions))
        ]
        return float(np.mean(hits))

    def search(
        self, searcher: Searcher, positions: NDArray[np.int64], allowed: RowMask | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Search the queries at the given positions; arguments and result as of :meth:`Searcher.search`."""
        if self.histories is None:
            return searcher.search(self.queries[positions], self.k, allowed)
        histories = [self.histories[position] for position in positions.tolist()]
        return searcher.search(self.queries[positions], self.k, allowed, histories=histories)

    def filters(self, positions: NDArray[np.int64]) -> Iterator[RowMask | None]:
        """The filter of each query at the given positions."""
        for position in positions:
            if self.excluded is None or self.indexed is None:
                yield self.allowed
            else:
                mask = np.ones(self.indexed.shape[0], dtype=np.bool_)
                mask[self.excluded[position]] = False
                yield RowMask.of(mask, self.indexed)


class ExactResults:
    """Exact results for every kind of query, computed once.

    Further kinds are derived from the plain queries: at ten times the depth, under :func:`random_filters`, and each
    query under a filter that excludes the rows nearest to it.

    Args:
        kinds: (p, Σd) queries by kind, including :data:`PLAIN`.
        vectors: (n, Σd) stored vectors.
        indexed: (n,) bool, the rows in the index.
        layout: the slots.
        k: k of the recall, at least 1.
        progress: called with the share done, 0 … 1.
        filters: further filters of the plain queries by name.

    Attributes:
        kinds: query set by kind.
        layout: the slots.
        k: k of the recall, at most the number of indexed rows.
    """

    def __init__(
        self,
        kinds: Mapping[str, NDArray[np.float32]],
        vectors: NDArray[np.floating],
        indexed: NDArray[np.bool_],
        layout: SlotLayout,
        k: int,
        progress: Callable[[float], None],
        filters: Mapping[str, RowMask] | None = None,
    ) -> None:
        count = int(np.count_nonzero(indexed))
        self.layout = layout
        self.k = min(k, count)
        self.kinds: dict[str, QuerySet] = {}
        self._vectors, self._indexed = vectors, indexed
        self._findable = None if count == indexed.shape[0] else indexed
        for done, (kind, queries) in enumerate(kinds.items()):
            part = _part_of(progress, done, len(kinds) + 1)
            further = random_filters(indexed) | dict(filters or {}) if kind == PLAIN else {}
            self._add({kind: None, **further}, queries, part)
        plain = kinds[PLAIN]
        if count > _DEEP_FACTOR * self.k:
            self._add_deep(plain[:_DEEP_QUERIES])
        if count >= _EXCLUDED_PART:
            self._add_excluding(plain[:_EXCLUDING_QUERIES], min(count // _EXCLUDED_PART, _MOST_EXCLUDED))

    def recall(self, searcher: Searcher, kind: str, chosen: NDArray[np.int64] | None = None) -> float:
        """Recall@k of a searcher on the queries of one kind; see :meth:`QuerySet.recall`."""
        return self.kinds[kind].recall(searcher, chosen)

    def _add(
        self, filters: Mapping[str, RowMask | None], queries: NDArray[np.float32], progress: Callable[[float], None]
    ) -> None:
        masks = [self._findable if allowed is None else allowed.findable for allowed in filters.values()]
        results = exact_top_k_each(queries, self._vectors, self.k + OVER_FETCH, masks, progress)
        for (name, allowed), (rows, _) in zip(filters.items(), results, strict=True):
            k = self.k if allowed is None else min(self.k, allowed.count)
            self.kinds[name] = QuerySet(queries, k, self._min_scores(queries, rows, k), rows, allowed)

    def _add_deep(self, queries: NDArray[np.float32]) -> None:
        k = _DEEP_FACTOR * self.k
        rows, _ = exact_top_k(queries, self._vectors, k + OVER_FETCH, allowed=self._findable)
        self.kinds[f"{PLAIN} top {k}"] = QuerySet(queries, k, self._min_scores(queries, rows, k), rows)

    def _add_excluding(self, queries: NDArray[np.float32], excluded: int) -> None:
        rows, _ = exact_top_k(queries, self._vectors, excluded + self.k + OVER_FETCH, allowed=self._findable)
        k = min(self.k, int(np.count_nonzero(self._indexed)) - excluded)
        min_scores = self._min_scores(queries, rows[:, excluded:], k)
        self.kinds[f"nearest {100 / _EXCLUDED_PART:g} % excluded"] = QuerySet(
            queries, k, min_scores, rows[:, excluded:], excluded=rows[:, :excluded], indexed=self._indexed
        )

    def _min_scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> NDArray[np.float32]:
        """(p,) float32 k-th score, computed as the searcher computes it."""
        _, scores = rescore(queries, rows, self._vectors, k)
        last: NDArray[np.float32] = scores[:, -1]
        return last


def _part_of(progress: Callable[[float], None], done: int, parts: int) -> Callable[[float], None]:
    return lambda share: progress((done + share) / parts)


def latency_ms(searcher: Searcher, query_set: QuerySet) -> dict[str, float]:
    """Latency of searches with one query each.

    Args:
        searcher: the searcher to measure.
        query_set: the queries with their filters.

    Returns:
        ``p50``, ``p90`` and ``p99`` in milliseconds; lower is better.
    """
    times = []
    positions = np.arange(min(query_set.queries.shape[0], _TIMED_QUERIES))
    for number, allowed in enumerate(query_set.filters(positions)):
        started = time.perf_counter()
        query_set.search(searcher, positions[[number]], allowed)
        times.append(1000 * (time.perf_counter() - started))
    return {f"p{percent}": float(np.percentile(times, percent)) for percent in (50, 90, 99)}


def result_spread(
    searcher: Searcher,
    plain: QuerySet,
    vectors: NDArray[np.floating],
    layout: SlotLayout,
    lists: ListScores | None = None,
) -> dict[str, Any]:
    """Number of distinct items in all top k, and the mean share of each slot and list in the scores.

    Args:
        searcher: the searcher to measure.
        plain: the queries; with histories if there are lists.
        vectors: (n, Σd) stored vectors.
        layout: the slots.
        lists: scores by lists; None for none.

    Returns:
        ``queries`` and ``distinct_items`` (counts), ``slot_shares`` (slot → mean share of the positive contributions to
        a score, 0 … 1, the lists of the slot included; they sum to 1), and with lists ``list_shares`` (list → its part
        of that).
    """
    rows, _ = plain.search(searcher, np.arange(plain.queries.shape[0]), None)
    parts = slot_scores(plain.queries, gather(vectors, rows), layout)
    listed = np.zeros((*rows.shape, 0), dtype=np.float32)
    if lists is not None and plain.histories is not None:
        listed = lists.contributions(plain.histories, rows)
        for column, slot in enumerate(lists.lists.slots):
            parts[:, :, layout.names.index(slot)] += listed[:, :, column]
    found = rows >= 0
    positive = np.maximum(parts, 0.0)[found]
    totals = positive.sum(axis=1, keepdims=True)
    totals = np.where(totals > 0, totals, 1.0)
    spread = {
        "queries": plain.queries.shape[0],
        "distinct_items": int(np.unique(rows[found]).shape[0]),
        "slot_shares": _shares(layout.names, positive / totals),
    }
    return spread if lists is None else spread | {"list_shares": _shares(lists.lists.names, listed[found] / totals)}


def _shares(names: Sequence[str], parts: NDArray[np.floating]) -> dict[str, float]:
    return {name: float(share) for name, share in zip(names, parts.mean(axis=0), strict=True)}
