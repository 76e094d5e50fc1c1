"""Adds item-to-item lists to the queries that an index is measured with: histories, and exact scores of the whole.

The exact scores are computed apart from the search that is measured: by the lists' own float64 sums, over the exact
best rows by slots and every item in a list. No list lowers a score, so no other item can be among the best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from index.evaluation.measure import PLAIN, ExactResults, QuerySet
from index.lists.list_query import ListQuery
from index.lists.list_scores import ListScores, summed
from index.search.scoring import gather, whole_scores

_ROUNDING = 1e-5  # a score may fall short of the exact one by this, relative to it where it is above 1


def with_lists(
    exact: ExactResults,
    histories: Sequence[NDArray[np.int64]],
    weights: Mapping[str, Mapping[str, float]],
    lists: ListScores,
    vectors: NDArray[np.floating],
    indexed: NDArray[np.bool_],
) -> dict[str, QuerySet]:
    """The query sets of exact results, with the histories of their queries and the scores of slots and lists together.

    Args:
        exact: exact results by slots.
        histories: of the plain queries, oldest first.
        weights: slot weights by kind of query, see :func:`index.evaluation.measure.kind_weights`; a kind that is not
            named has the weights of ``plain``.
        lists: scores by lists.
        vectors: (n, Σd) stored vectors.
        indexed: (n,) bool, the rows in the index.
    """
    listed = {}
    for kind, query_set in exact.kinds.items():
        own = weights.get(kind, weights[PLAIN])
        slot_weights = np.array([own.get(name, 1.0) for name in exact.layout.names], dtype=np.float32)
        some = histories[: query_set.queries.shape[0]]
        listed[kind] = replace(
            query_set,
            min_scores=_min_scores(query_set, some, lists.scales(own), lists, vectors, indexed),
            histories=[ListQuery(history, slot_weights=slot_weights) for history in some],
        )
    return listed


def _min_scores(
    query_set: QuerySet,
    histories: Sequence[NDArray[np.int64]],
    scales: NDArray[np.float32],
    lists: ListScores,
    vectors: NDArray[np.floating],
    indexed: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """(p,) float32 k-th exact score by slots and lists, lowered by what rounding may cost."""
    found = lists.candidates(histories)
    findable = indexed if query_set.allowed is None else query_set.allowed.findable
    least = np.empty(len(histories), dtype=np.float32)
    for number, query in enumerate(query_set.queries):
        listed, parts = found.of(number)
        kept = findable[listed]
        if query_set.excluded is not None:
            kept &= ~np.isin(listed, query_set.excluded[number])
        exact_rows = query_set.exact_rows[number]
        rows = np.union1d(exact_rows[exact_rows >= 0], listed[kept])
        scores = whole_scores(query[None], gather(vectors, rows)[None])[0]
        scores[np.searchsorted(rows, listed[kept])] += summed(parts[kept], scales)
        least[number] = np.partition(scores, -query_set.k)[-query_set.k]
    least -= np.float32(_ROUNDING) * np.maximum(np.float32(1), np.abs(least))
    return least
