"""Measuring an index on held-out histories: recall by kind of query, latency, coverage.

Recall is counted by score: a row found is right when its score reaches that of the k-th exact row, so that equal scores
(for example all items without the only slot asked for) are not held against the index.
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
from index.search.scoring import gather, rank_again, slot_scores
from index.search.searcher import Searcher

PLAIN = "plain"
SHARES = (0.5, 0.1, 0.01, 0.001)  # of the rows that random filters allow

_DEEPER = 10  # times k: what pages and diversified answers ask for
_DEEP_QUERIES = 64
_BARRED_SHARE = 100  # the filter that knows the query forbids the nearest hundredth of all rows …
_MOST_BARRED = 10_000  # … but no more than these
_BARRED_QUERIES = 32
_TIMED_QUERIES = 200


def probe_queries(
    encoder: OnnxSequenceEncoder,
    vectors: NDArray[np.floating],
    indexed: NDArray[np.bool_],
    probes: EvaluationQueries,
    limit: int,
) -> NDArray[np.float32]:
    """Queries to measure with: those of the probes, spread evenly, or of single items when there are no probes.

    Args:
        encoder: makes the queries.
        vectors: (n, Σd) stored vectors.
        indexed: (n,) bool, rows with a slot; at least one.
        probes: held-out histories.
        limit: most queries to make, at least 1.

    Returns:
        (p, Σd) float32, 1 ≤ p ≤ limit.
    """
    if len(probes):
        chosen = np.unique(np.linspace(0, len(probes) - 1, limit).astype(np.int64))
        histories = [probes.history(int(probe))[-encoder.max_history :] for probe in chosen]
    else:
        rows = np.flatnonzero(indexed)
        histories = [rows[[place]] for place in np.unique(np.linspace(0, len(rows) - 1, limit).astype(np.int64))]
    return encoder.encode([vectors[rows] for rows in histories])


def query_kinds(
    queries: NDArray[np.float32], layout: SlotLayout, presence: Mapping[str, int]
) -> dict[str, NDArray[np.float32]]:
    """The same queries plain, with each slot weighed three times, and with each slot alone.

    Args:
        queries: (p, Σd) plain queries.
        layout: the slots.
        presence: items per slot; a slot that no item has is left out.

    Returns:
        (p, Σd) float32 per kind: ``plain``, ``text x3``, ``text alone`` …; only ``plain`` with a single slot.
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
    """Filters that allow a random share of the indexed rows and know nothing of any query.

    Returns:
        ``filtered 50 %`` … ``filtered 0.1 %``, less those that would not leave a single row.
    """
    rows = np.flatnonzero(indexed)
    order = np.random.default_rng(seed).permutation(rows)
    filters: dict[str, RowMask | None] = {}
    for share in SHARES:
        count = round(share * rows.shape[0])
        if count:
            mask = np.zeros(indexed.shape[0], dtype=np.bool_)
            mask[order[:count]] = True
            filters[f"filtered {100 * share:g} %"] = RowMask.of(mask, indexed)
    return filters


@dataclass(frozen=True, eq=False)
class Asked:
    """Queries of one kind, what they ask for, and the score that a right answer must reach.

    Attributes:
        queries: (p, Σd) float32.
        k: results wanted, at least 1, no more than there are.
        bounds: (p,) float32 the score of the k-th exact row.
        allowed: the filter they share; None for none.
        barred: (p, m) int64 rows forbidden to each query by a filter of its own; None for none.
        indexed: (n,) bool, the rows that may be found.
    """

    queries: NDArray[np.float32]
    k: int
    bounds: NDArray[np.float32]
    allowed: RowMask | None = None
    barred: NDArray[np.int64] | None = None
    indexed: NDArray[np.bool_] | None = None

    @property
    def everyday(self) -> bool:
        """Whether neither a filter nor more results than usual are asked for."""
        return self.allowed is None and self.barred is None

    def recall(self, searcher: Searcher, chosen: NDArray[np.int64] | None = None) -> float:
        """Recall@k of a searcher, 0 … 1, on the queries in ``chosen`` (c,) int64, None for all."""
        places = np.arange(self.queries.shape[0]) if chosen is None else chosen
        if self.barred is None:
            _, scores = searcher.search(self.queries[places], self.k, self.allowed)
            return float((scores >= self.bounds[places, None]).mean())
        hits = [
            (searcher.search(query, self.k, allowed)[1][0] >= bound).mean()
            for (query, allowed), bound in zip(self.one_by_one(places), self.bounds[places], strict=True)
        ]
        return float(np.mean(hits))

    def one_by_one(self, places: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.float32], RowMask | None]]:
        """Each query, (1, Σd), with its filter."""
        for place in places:
            allowed = self.allowed
            if self.barred is not None and self.indexed is not None:
                mask = np.ones(self.indexed.shape[0], dtype=np.bool_)
                mask[self.barred[place]] = False
                allowed = RowMask.of(mask, self.indexed)
            yield self.queries[[place]], allowed


class Exact:
    """The right answers to every kind of query, computed once; scores are shared between filters.

    Args:
        kinds: (p, Σd) queries per kind, :data:`PLAIN` among them. To these come the plain ones at ten times the depth,
            under :func:`random_filters`, and each under a filter that forbids the rows nearest to it.
        vectors: (n, Σd) stored vectors.
        indexed: (n,) bool, the rows that may be found.
        layout: the slots.
        k: depth of the recall, at least 1.
        progress: called with the share done.

    Attributes:
        kinds: all kinds by name.
        layout: the slots.
        k: depth of the recall, no more than there are rows.
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
        self.kinds: dict[str, Asked] = {}
        self._vectors, self._indexed = vectors, indexed
        self._all = None if count == indexed.shape[0] else indexed
        for done, (kind, queries) in enumerate(kinds.items()):
            part = _part_of(progress, done, len(kinds) + 1)
            filters: dict[str, RowMask | None] = {kind: None}
            self._add(filters | (random_filters(indexed) if kind == PLAIN else {}), queries, part)
        plain = kinds[PLAIN]
        if count > _DEEPER * self.k:
            self._add_deep(plain[:_DEEP_QUERIES])
        if count >= _BARRED_SHARE:
            self._add_barred(plain[:_BARRED_QUERIES], min(count // _BARRED_SHARE, _MOST_BARRED))

    def recall(self, searcher: Searcher, kind: str, chosen: NDArray[np.int64] | None = None) -> float:
        """Recall@k of a searcher on the queries of one kind, 0 … 1; see :meth:`Asked.recall`."""
        return self.kinds[kind].recall(searcher, chosen)

    def _add(
        self, filters: Mapping[str, RowMask | None], queries: NDArray[np.float32], progress: Callable[[float], None]
    ) -> None:
        masks = [self._all if allowed is None else allowed.findable for allowed in filters.values()]
        answers = exact_top_k_each(queries, self._vectors, self.k + OVER_FETCH, masks, progress)
        for (name, allowed), (rows, _) in zip(filters.items(), answers, strict=True):
            k = self.k if allowed is None else min(self.k, allowed.count)
            self.kinds[name] = Asked(queries, k, self._bounds(queries, rows, k), allowed)

    def _add_deep(self, queries: NDArray[np.float32]) -> None:
        k = _DEEPER * self.k
        rows, _ = exact_top_k(queries, self._vectors, k + OVER_FETCH, allowed=self._all)
        self.kinds[f"{PLAIN} top {k}"] = Asked(queries, k, self._bounds(queries, rows, k))

    def _add_barred(self, queries: NDArray[np.float32], barred: int) -> None:
        rows, _ = exact_top_k(queries, self._vectors, barred + self.k + OVER_FETCH, allowed=self._all)
        k = min(self.k, int(np.count_nonzero(self._indexed)) - barred)
        bounds = self._bounds(queries, rows[:, barred:], k)
        self.kinds[f"nearest {100 / _BARRED_SHARE:g} % barred"] = Asked(
            queries, k, bounds, barred=rows[:, :barred], indexed=self._indexed
        )

    def _bounds(self, queries: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> NDArray[np.float32]:
        """(p,) the k-th score, computed as the searcher computes it."""
        _, scores = rank_again(queries, rows, self._vectors, self.layout, k)
        bounds: NDArray[np.float32] = scores[:, -1]
        return bounds


def _part_of(progress: Callable[[float], None], done: int, parts: int) -> Callable[[float], None]:
    return lambda share: progress((done + share) / parts)


def latency_ms(searcher: Searcher, asked: Asked) -> dict[str, float]:
    """Milliseconds of one search with one query at a time: p50, p90 and p99, lower is better."""
    times = []
    for query, allowed in asked.one_by_one(np.arange(min(asked.queries.shape[0], _TIMED_QUERIES))):
        started = time.perf_counter()
        searcher.search(query, asked.k, allowed)
        times.append(1000 * (time.perf_counter() - started))
    return {f"p{percent}": round(float(np.percentile(times, percent)), 4) for percent in (50, 90, 99)}


def spread(
    searcher: Searcher, queries: NDArray[np.float32], vectors: NDArray[np.floating], layout: SlotLayout, k: int
) -> dict[str, Any]:
    """How widely plain answers spread: the number of different items in all top-k, and the share of each slot.

    Returns:
        ``distinct_items``, ``queries`` and ``slot_shares`` (mean over the results of the slot's positive contribution,
        normalised to sum 1).
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
