"""Lists of words of large catalogues: candidates by the rarer words of an item, then their cosines with all words.

A frequent word costs the most and says the least: "of", in half of a million texts, brings half a million candidates.
So an item looks for candidates by its words and word pairs from the rarest on, until the texts that hold them are
together as many as a limit. An item with fewer in all looks by all its words. Those that share the most by these words
are compared by all words.

A word that alone is in more texts than the limit is looked for in the texts in which it weighs most.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from index.lists.item_lists import WORDS, ItemList
from training.lists.nearest import NearestItems, cost_blocks, in_order, joined, nearest_of

_PAIRS_PER_BLOCK = 1 << 22
_MOST_ROWS = 128
_ROWS_PER_COUNT = 1 << 16
_CANDIDATES_PER_NEIGHBOUR = 8
_LEAST_CANDIDATES = 200


def words_by_candidates(
    weights: csr_matrix, limit: int, neighbours: int, *, threads: int, progress: Callable[[int], None]
) -> ItemList:
    """The list of words with candidates by the rarer words.

    Args:
        weights: (n, terms) float32 rows of length 1, or without an entry; changed in place.
        limit: texts that the terms of an item are looked for in before no further term is, ≥ 1; so at most twice as
            many.
        neighbours: most entries of an item N.
        threads: that make blocks at the same time; the result does not depend on it.
        progress: called after every block with the number of items that are done.
    """
    search = _CandidateSearch(weights, limit, neighbours)
    lists = []
    for last, part in in_order(search.block, cost_blocks(search.costs, _PAIRS_PER_BLOCK, _MOST_ROWS), threads):
        lists.append(part)
        progress(last)
    return joined(WORDS, lists)


class _CandidateSearch:
    """Finds candidates of blocks of items.

    Args: as for :func:`words_by_candidates`.

    Attributes:
        costs: (n,) int64 texts that the terms of each item are looked for in.
    """

    def __init__(self, weights: csr_matrix, limit: int, neighbours: int) -> None:
        texts = np.bincount(weights.indices, minlength=weights.shape[1])
        order = np.argsort(texts, kind="stable")
        ranks = np.empty(len(order), weights.indices.dtype)
        ranks[order] = np.arange(len(order))
        weights.indices = ranks[weights.indices]  # by rarity: the rarer terms of an item come first
        weights.has_sorted_indices = False
        weights.sort_indices()
        self._weights, self._neighbours = weights, neighbours
        self._kept, self.costs = _rarest(weights, np.minimum(texts[order], limit), limit)
        self._postings = _strongest(weights.T.tocsr(), limit)

    def block(self, rows: tuple[int, int]) -> tuple[int, NearestItems]:
        """The last row and the nearest of the items ``rows[0]`` … ``rows[1] − 1``."""
        first, last = rows
        shared = csr_matrix(self._searched(first, last) @ self._postings)
        most = max(_CANDIDATES_PER_NEIGHBOUR * self._neighbours, _LEAST_CANDIDATES)
        candidates = []
        for number in range(last - first):
            part = slice(shared.indptr[number], shared.indptr[number + 1])
            candidates.append(_best(shared.indices[part], shared.data[part], most + 1))  # the item is one of them
        owners = np.repeat(np.arange(last - first), [len(found) for found in candidates])
        others = np.concatenate(candidates)
        cosines = np.asarray(self._weights[first + owners].multiply(self._weights[others]).sum(axis=1)).ravel()
        return last, nearest_of(owners, others, cosines, np.arange(first, last), self._neighbours)

    def _searched(self, first: int, last: int) -> csr_matrix:
        """(last − first, terms) the weights of the terms that items look for."""
        kept, indptr = self._kept[first:last], self._weights.indptr
        ends = np.cumsum(kept)
        places = np.arange(int(ends[-1])) + np.repeat(indptr[first:last] - (ends - kept), kept)
        entries = (self._weights.data[places], self._weights.indices[places], np.concatenate([[0], ends]))
        return csr_matrix(entries, shape=(last - first, self._weights.shape[1]))


def _rarest(weights: csr_matrix, texts: NDArray[np.int64], limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many terms each item looks for, the rarest, and the texts that they are in together.

    Args:
        weights: (n, terms) with the rarer terms first in each row.
        texts: (terms,) texts that a term is looked for in.
        limit: of their sum; the term that reaches it is the last.
    """
    kept, costs = np.zeros(weights.shape[0], np.int64), np.zeros(weights.shape[0], np.int64)
    for first in range(0, weights.shape[0], _ROWS_PER_COUNT):
        indptr = weights.indptr[first : first + _ROWS_PER_COUNT + 1]
        lengths = np.diff(indptr)
        sums = np.concatenate([[0], np.cumsum(texts[weights.indices[indptr[0] : indptr[-1]]], dtype=np.int64)])
        starts = (indptr - indptr[0]).astype(np.int64)
        lasts = np.searchsorted(sums, sums[starts[:-1]] + limit)  # the term that reaches the limit is the last
        lasts = np.minimum(lasts, starts[1:])
        part = slice(first, first + len(lengths))
        kept[part] = lasts - starts[:-1]
        costs[part] = sums[lasts] - sums[starts[:-1]]
    return kept, costs


def _strongest(postings: csr_matrix, limit: int) -> csr_matrix:
    """(terms, n) at most the ``limit`` texts in which a term weighs most; equal ones go by row."""
    kept = np.ones(len(postings.data), np.bool_)
    for term in np.flatnonzero(np.diff(postings.indptr) > limit):
        part = slice(postings.indptr[term], postings.indptr[term + 1])
        kept[part] = False
        strongest = np.lexsort((postings.indices[part], -postings.data[part]))[:limit]
        kept[part.start + strongest] = True
    if kept.all():
        return postings
    counts = np.concatenate([[0], np.cumsum(kept)])[postings.indptr]
    return csr_matrix((postings.data[kept], postings.indices[kept], counts), shape=postings.shape)


def _best(rows: NDArray[np.integer], similarities: NDArray[np.floating], most: int) -> NDArray[np.integer]:
    """Rows of the ``most`` largest similarities; equal ones go by row."""
    if len(rows) <= most:
        return rows
    least = np.partition(similarities, len(rows) - most)[len(rows) - most]
    above = rows[similarities > least]
    return np.concatenate([above, np.sort(rows[similarities == least])[: most - len(above)]])
