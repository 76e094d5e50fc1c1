"""Finds the exact nearest items of a sample by the cosine of one slot, in blocks of bounded memory."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK_SCORES = 1 << 22  # 16 MiB of float32 similarities at a time
_LARGEST_BLOCK = 16_384
KEPT_CLOSE = 8
"""Number of close rows that are listed per item."""
_DENSE = 4  # new pairs per place among the nearest, above which a block is first cut to its own nearest


@dataclass(frozen=True)
class Neighbours:
    """Nearest other items of s sampled items.

    Attributes:
        sample: (s,) int64 rows, ascending.
        rows: (s, k) int64 rows of the k nearest candidates by cosine, best first, padded with −1.
        close: (s,) int64 number of other items with a cosine of at least the bound.
        first_close: (s, KEPT_CLOSE) int64 the lowest rows of these items, ascending, padded with −1.
    """

    sample: NDArray[np.int64]
    rows: NDArray[np.int64]
    close: NDArray[np.int64]
    first_close: NDArray[np.int64]


def nearest(
    vectors: NDArray[np.floating],
    part: slice,
    members: NDArray[np.int64],
    candidates: NDArray[np.bool_],
    sample: NDArray[np.int64],
    *,
    k: int,
    bound: float,
    progress: Callable[[float], None],
) -> Neighbours:
    """Find the nearest members of each sampled item by the cosine of one slot.

    Args:
        vectors: (n, Σd) stored vectors, may be memory-mapped.
        part: the slot's components.
        members: (m,) int64 rows that have the slot, ascending.
        candidates: (n,) bool, the rows that may be among the k nearest.
        sample: (s,) int64 rows out of ``members``, ascending.
        k: number of nearest candidates, at least 1.
        bound: least cosine of a close item.
        progress: called with the share done, 0 … 1.

    Returns:
        The neighbours; ties by lower row.
    """
    queries = unit_rows(vectors, part, sample)
    best = _NearestSoFar(sample, k, bound)
    step = max(1, min(_LARGEST_BLOCK, _BLOCK_SCORES // max(1, sample.shape[0])))
    for start in range(0, members.shape[0], step):
        progress(start / members.shape[0])
        rows = members[start : start + step]
        best.add(rows, queries @ unit_rows(vectors, part, rows).T, candidates[rows])
    return Neighbours(sample, best.rows, best.close, best.first_close)


class _NearestSoFar:
    """The nearest rows of every query among the blocks so far; blocks come in ascending order of rows."""

    def __init__(self, sample: NDArray[np.int64], k: int, bound: float) -> None:
        self._sample, self._bound = sample, np.float32(bound)
        self.rows = np.full((sample.shape[0], k), -1, dtype=np.int64)
        self._best = np.full((sample.shape[0], k), -np.inf, dtype=np.float32)
        self.close = np.zeros(sample.shape[0], dtype=np.int64)
        self.first_close = np.full((sample.shape[0], KEPT_CLOSE), -1, dtype=np.int64)

    def add(self, rows: NDArray[np.int64], cosines: NDArray[np.float32], candidates: NDArray[np.bool_]) -> None:
        """Merge the cosines (s, b) with the members ``rows`` (b,); ``cosines`` is overwritten."""
        first, last = np.searchsorted(self._sample, (rows[0], rows[-1] + 1))
        cosines[np.arange(first, last), np.searchsorted(rows, self._sample[first:last])] = -np.inf
        self._count_close(rows, *_true_entries(cosines >= self._bound))
        if not candidates.all():
            cosines[:, ~candidates] = -np.inf
        better = cosines > self._best[:, -1:]
        k = self.rows.shape[1]
        if np.count_nonzero(better) > _DENSE * self.rows.size and rows.shape[0] > k:  # as in the first block
            better &= cosines >= np.partition(cosines, -k, axis=1)[:, -k, None]
        queries, columns = _true_entries(better)
        self._merge(queries, rows[columns], cosines[queries, columns])

    def _count_close(self, rows: NDArray[np.int64], queries: NDArray[np.intp], columns: NDArray[np.intp]) -> None:
        """Count close members and keep the first; pairs of query and column in ascending order."""
        counts = np.bincount(queries, minlength=self.close.shape[0])
        place = self.close[queries] + _places(counts)
        kept = place < KEPT_CLOSE
        self.first_close[queries[kept], place[kept]] = rows[columns[kept]]
        self.close += counts

    def _merge(self, queries: NDArray[np.intp], rows: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Merge pairs of query and row, in ascending order, with the best so far; ties by lower row."""
        changed = np.unique(queries)
        k = self.rows.shape[1]
        of = np.concatenate([np.repeat(changed, k), queries])
        rows = np.concatenate([self.rows[changed].ravel(), rows])
        scores = np.concatenate([self._best[changed].ravel(), scores])
        order = np.lexsort((-scores, of))  # stable, and the best so far are of lower rows
        best = order[_places(np.bincount(of)[changed]) < k]
        self.rows[changed] = rows[best].reshape(-1, k)
        self._best[changed] = scores[best].reshape(-1, k)


def _true_entries(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the true entries of a matrix, in ascending order; `np.nonzero` takes three times as long."""
    rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return rows, columns


def _places(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 … c − 1 for every count c, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(counts.sum()) - np.repeat(ends - counts, counts)


def unit_rows(vectors: NDArray[np.floating], part: slice, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """One slot of some rows, normalised.

    Args:
        vectors: (n, Σd) stored vectors.
        part: the slot's components.
        rows: (r,) int64 rows that have the slot.

    Returns:
        (r, d) float32, every row of length 1.
    """
    slot = np.asarray(vectors[rows, part], dtype=np.float32)
    return np.asarray(slot / np.linalg.norm(slot, axis=1, keepdims=True), dtype=np.float32)


def sample_rows(members: NDArray[np.int64], *, comparisons: int, smallest: int, seed: int) -> NDArray[np.int64]:
    """All members, or a random sample that bounds the number of comparisons.

    Args:
        members: (m,) int64 rows, ascending.
        comparisons: most pairs of a sampled item and a member.
        smallest: least size of the sample, which takes precedence over ``comparisons``.
        seed: seed of the sample.

    Returns:
        (s,) int64 rows, ascending, drawn without replacement.
    """
    size = max(smallest, comparisons // max(1, members.shape[0]))
    if size >= members.shape[0]:
        return members
    return np.sort(np.random.default_rng(seed).choice(members, size, replace=False))
