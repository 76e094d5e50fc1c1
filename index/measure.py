"""Measuring an index on held-out histories: recall by kind of query, the effort it takes, latency, coverage.

Recall is counted by score: a row found is right when its score reaches that of the k-th exact row, so that equal scores
(for example all items without the only slot asked for) are not held against the index.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.encoder import OnnxSequenceEncoder
from index.exact import exact_top_k
from index.plan import OVER_FETCH, SCAN, Effort, IndexKind, skew_of, slot_shares
from index.probes import Probes
from index.scoring import gather, rank_again, slot_scores
from index.search import Searcher
from index.slots import SlotLayout

PLAIN = "plain"

_SMALLEST_SAMPLE = 8  # queries of one kind in one band of skew, below which its mean decides nothing
_FIRST_EFFORT = {"flat": 1, "hnsw": 32, "ivf": 4}
_CEILING = {"flat": 1, "hnsw": 4096, "ivf": 65_536}
_SLACK = 0.01  # how far a whole kind of query may stay below the target, so that the everyday ones stay cheap
_TIMED_QUERIES = 200


def probe_queries(
    encoder: OnnxSequenceEncoder,
    vectors: NDArray[np.floating],
    indexed: NDArray[np.bool_],
    probes: Probes,
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


class Exact:
    """The right answers to every kind of query, computed once.

    Args:
        kinds: (p, Σd) queries per kind.
        vectors: (n, Σd) stored vectors.
        indexed: (n,) bool, the rows that may be found.
        layout: the slots.
        k: depth of the recall, at least 1.
        progress: called with the share done.
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
        self.kinds = kinds
        self.layout = layout
        self.k = min(k, int(np.count_nonzero(indexed)))
        allowed = None if indexed.all() else indexed
        self._bounds: dict[str, NDArray[np.float32]] = {}
        for done, (kind, queries) in enumerate(kinds.items()):
            progress(done / len(kinds))
            rows, _ = exact_top_k(queries, vectors, self.k + OVER_FETCH, allowed=allowed)
            _, scores = rank_again(queries, rows, vectors, layout, self.k)
            self._bounds[kind] = scores[:, -1]

    def recall(self, searcher: Searcher, kind: str, chosen: NDArray[np.int64] | None = None) -> float:
        """Recall@k of a searcher on the queries of one kind, 0 … 1.

        Args:
            searcher: what is measured.
            kind: of :func:`query_kinds`.
            chosen: (c,) int64 queries to use, None for all.
        """
        part: Any = slice(None) if chosen is None else chosen
        _, scores = searcher.search(self.kinds[kind][part], self.k)
        return float((scores >= self._bounds[kind][part, None]).mean())


def calibrate(
    index_kind: IndexKind,
    make_searcher: Callable[[Effort], Searcher],
    exact: Exact,
    target: float,
    progress: Callable[[float], None],
) -> Effort:
    """The least effort per band of skew that reaches a recall for every kind of query in the band.

    Effort is raised by a quarter at a time from a small start until each kind's mean recall reaches the target; at the
    latest a full scan does. The first band holds 95 % of the plain queries and is measured on them alone; should that
    leave another kind more than 0.01 below the target, all bands rise together.

    Args:
        index_kind: flat, hnsw or ivf.
        make_searcher: a searcher over the index with a given effort.
        exact: queries and right answers.
        target: recall@k to reach, 0 … 1.
        progress: called with the share done.
    """
    plain = exact.kinds[PLAIN]
    per_k = exact.k + OVER_FETCH
    typical = tuple(float(share) for share in slot_shares(plain, exact.layout).mean(axis=0))
    if index_kind == "flat":
        return Effort(typical, ((1.0, SCAN),), per_k)
    skews = {kind: skew_of(queries, exact.layout, np.array(typical)) for kind, queries in exact.kinds.items()}
    first = float(np.clip(np.quantile(skews[PLAIN], 0.95), 0.05, 0.9))
    edges = [first, first + (1 - first) / 4, first + (1 - first) / 2, 1.0]
    measured: dict[float, int] = {}
    effort = _FIRST_EFFORT[index_kind]
    for number, (lowest, edge) in enumerate(zip([-1.0, *edges], edges, strict=False)):
        progress(number / len(edges))
        members = {kind: np.flatnonzero((skew > lowest) & (skew <= edge)) for kind, skew in skews.items()}
        if number == 0:  # the everyday queries alone decide what they cost
            members = {PLAIN: members[PLAIN]}
        members = {kind: chosen for kind, chosen in members.items() if chosen.shape[0] >= _SMALLEST_SAMPLE}
        if members and effort != SCAN:  # more skew never needs less, so each band starts where the last one ended
            effort = _climb(index_kind, make_searcher, typical, exact, members, effort, target)
        if members or edge == edges[-1]:
            measured[edge] = effort
    # A band without queries takes the effort of the next one, as searchsorted skips it.
    found = Effort(typical, tuple(measured.items()), per_k)
    while any(value != SCAN for _, value in found.bands) and not _holds(make_searcher(found), exact, target - _SLACK):
        found = replace(found, bands=tuple((edge, _raised(index_kind, value)) for edge, value in found.bands))
    return found


def _holds(searcher: Searcher, exact: Exact, floor: float) -> bool:
    """Whether every kind of query as a whole reaches a recall, those in the first band included."""
    return all(exact.recall(searcher, kind) >= floor for kind in exact.kinds)


def _raised(kind: IndexKind, effort: int) -> int:
    """A quarter more effort; :data:`SCAN` beyond the ceiling, and for ever after."""
    more = effort + max(1, effort // 4)
    return SCAN if effort == SCAN or more > _CEILING[kind] else more


def _climb(
    kind: IndexKind,
    make_searcher: Callable[[Effort], Searcher],
    typical: tuple[float, ...],
    exact: Exact,
    members: Mapping[str, NDArray[np.int64]],
    effort: int,
    target: float,
) -> int:
    """Raise the effort by a quarter until every kind reaches the target; :data:`SCAN` when nothing else does."""
    waiting = dict(members)
    while effort != SCAN:
        searcher = make_searcher(Effort(typical, ((1.0, effort),), exact.k + OVER_FETCH))
        waiting = {name: chosen for name, chosen in waiting.items() if exact.recall(searcher, name, chosen) < target}
        if not waiting:
            break
        effort = _raised(kind, effort)
    return effort


def latency_ms(searcher: Searcher, queries: NDArray[np.float32], k: int) -> dict[str, float]:
    """Milliseconds of one search with one query at a time: p50, p90 and p99, lower is better."""
    times = []
    for query in queries[:_TIMED_QUERIES]:
        started = time.perf_counter()
        searcher.search(query[None], k)
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
