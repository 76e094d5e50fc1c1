"""Measures an index on evaluation queries: recall and latency by kind of query, and coverage.

Recall compares scores: a found row is correct if its score reaches that of the k-th exact row. So any of several rows
with equal scores is correct, such as the items that lack the only slot with a weight.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.items.eval_queries import EvaluationQueries
from index.items.slots import SlotLayout
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


def evaluation_query_vectors(
    encoder: OnnxSequenceEncoder,
    vectors: NDArray[np.floating],
    indexed: NDArray[np.bool_],
    evaluation_queries: EvaluationQueries,
    limit: int,
) -> NDArray[np.float32]:
    """Encode an even sample of the evaluation queries, or of single items if there are none.

    Args:
        encoder: encodes the histories.
        vectors: (n, Σd) stored vectors.
        indexed: (n,) bool, rows with a slot; at least one.
        evaluation_queries: held-out histories, may be empty.
        limit: most queries to encode, at least 1.

    Returns:
        (p, Σd) float32, 1 ≤ p ≤ limit.
    """
    if len(evaluation_queries):
        chosen = np.unique(np.linspace(0, len(evaluation_queries) - 1, limit).astype(np.int64))
        histories = [evaluation_queries.history(int(query))[-encoder.max_history :] for query in chosen]
    else:
        rows = np.flatnonzero(indexed)
        positions = np.unique(np.linspace(0, len(rows) - 1, limit).astype(np.int64))
        histories = [rows[[position]] for position in positions]
    return encoder.encode([vectors[rows] for rows in histories])


def query_kinds(
    queries: NDArray[np.float32], layout: SlotLayout, presence: Mapping[str, int]
) -> dict[str, NDArray[np.float32]]:
    """Derive kinds of queries: plain, with each slot weighted three times, and with each slot alone.

    Args:
        queries: (p, Σd) plain queries.
        layout: the slots.
        presence: number of items per slot; a slot without items gets no kind.

    Returns:
        (p, Σd) float32 per kind: ``plain``, ``text x3``, ``text alone`` …; only ``plain`` if there is one slot.
    """
    kinds = {PLAIN: queries}
    if len(layout.slots) == 1:
        return kinds
    for name in layout.names:
        if presence.get(name, 0):
            kinds[f"{name} x3"] = queries * layout.weights({name: 3.0})
            kinds[f"{name} alone"] = queries * layout.weights({other: 0.0 for other in layout.names if other != name})
    return kinds


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
        allowed: filter shared by all queries; None for none.
        excluded: (p, m) int64 rows that each query's own filter excludes; None for none.
        indexed: (n,) bool, the rows in the index; only needed with ``excluded``.
    """

    queries: NDArray[np.float32]
    k: int
    min_scores: NDArray[np.float32]
    allowed: RowMask | None = None
    excluded: NDArray[np.int64] | None = None
    indexed: NDArray[np.bool_] | None = None

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
            _, scores = searcher.search(self.queries[positions], self.k, self.allowed)
            return float((scores >= self.min_scores[positions, None]).mean())
        hits = [
            (searcher.search(query, self.k, allowed)[1][0] >= min_score).mean()
            for (query, allowed), min_score in zip(self.one_by_one(positions), self.min_scores[positions], strict=True)
        ]
        return float(np.mean(hits))

    def one_by_one(self, positions: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.float32], RowMask | None]]:
        """Each query at the given positions, (1, Σd), with its filter."""
        for position in positions:
            allowed = self.allowed
            if self.excluded is not None and self.indexed is not None:
                mask = np.ones(self.indexed.shape[0], dtype=np.bool_)
                mask[self.excluded[position]] = False
                allowed = RowMask.of(mask, self.indexed)
            yield self.queries[[position]], allowed


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
    ) -> None:
        count = int(np.count_nonzero(indexed))
        self.layout = layout
        self.k = min(k, count)
        self.kinds: dict[str, QuerySet] = {}
        self._vectors, self._indexed = vectors, indexed
        self._findable = None if count == indexed.shape[0] else indexed
        for done, (kind, queries) in enumerate(kinds.items()):
            part = _part_of(progress, done, len(kinds) + 1)
            filters: dict[str, RowMask | None] = {kind: None}
            self._add(filters | (random_filters(indexed) if kind == PLAIN else {}), queries, part)
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
            self.kinds[name] = QuerySet(queries, k, self._min_scores(queries, rows, k), allowed)

    def _add_deep(self, queries: NDArray[np.float32]) -> None:
        k = _DEEP_FACTOR * self.k
        rows, _ = exact_top_k(queries, self._vectors, k + OVER_FETCH, allowed=self._findable)
        self.kinds[f"{PLAIN} top {k}"] = QuerySet(queries, k, self._min_scores(queries, rows, k))

    def _add_excluding(self, queries: NDArray[np.float32], excluded: int) -> None:
        rows, _ = exact_top_k(queries, self._vectors, excluded + self.k + OVER_FETCH, allowed=self._findable)
        k = min(self.k, int(np.count_nonzero(self._indexed)) - excluded)
        min_scores = self._min_scores(queries, rows[:, excluded:], k)
        self.kinds[f"nearest {100 / _EXCLUDED_PART:g} % excluded"] = QuerySet(
            queries, k, min_scores, excluded=rows[:, :excluded], indexed=self._indexed
        )

    def _min_scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> NDArray[np.float32]:
        """(p,) float32 k-th score, computed as the searcher computes it."""
        _, scores = rescore(queries, rows, self._vectors, self.layout, k)
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
    for query, allowed in query_set.one_by_one(np.arange(min(query_set.queries.shape[0], _TIMED_QUERIES))):
        started = time.perf_counter()
        searcher.search(query, query_set.k, allowed)
        times.append(1000 * (time.perf_counter() - started))
    return {f"p{percent}": round(float(np.percentile(times, percent)), 4) for percent in (50, 90, 99)}


def result_spread(
    searcher: Searcher, queries: NDArray[np.float32], vectors: NDArray[np.floating], layout: SlotLayout, k: int
) -> dict[str, Any]:
    """Number of distinct items in all top k, and the mean share of each slot in the scores.

    Args:
        searcher: the searcher to measure.
        queries: (p, Σd) float32.
        vectors: (n, Σd) stored vectors.
        layout: the slots.
        k: number of results per query, at least 1.

    Returns:
        ``queries`` and ``distinct_items`` (counts), and ``slot_shares`` (slot → mean share of the positive
        contributions to a score, 0 … 1; they sum to 1).
    """
    rows, _ = searcher.search(queries, k)
    parts = np.maximum(slot_scores(queries, gather(vectors, rows), layout), 0.0)[rows >= 0]
    totals = parts.sum(axis=1, keepdims=True)
    shares = (parts / np.where(totals > 0, totals, 1.0)).mean(axis=0)
    return {
        "queries": queries.shape[0],
        "distinct_items": int(np.unique(rows[rows >= 0]).shape[0]),
        "slot_shares": {name: round(float(share), 4) for name, share in zip(layout.names, shares, strict=True)},
    }
