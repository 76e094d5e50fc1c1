"""Finds the exact nearest items of a sample by the cosine of one slot, in blocks of bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK_SCORES = 1 << 22  # 16 MiB of float32 similarities at a time
_LARGEST_BLOCK = 16_384
KEPT_CLOSE = 8
"""Number of close rows that are listed per item."""


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
        for query, columns in _true_columns(cosines >= self._bound):
            known = min(int(self.close[query]), KEPT_CLOSE)
            new = rows[columns[: KEPT_CLOSE - known]]
            self.first_close[query, known : known + new.shape[0]] = new
            self.close[query] += columns.shape[0]
        if not candidates.all():
            cosines[:, ~candidates] = -np.inf
        k = self.rows.shape[1]
        for query, columns in _true_columns(cosines > self._best[:, -1:]):
            scores = np.concatenate([self._best[query], cosines[query, columns]])
            order = np.argsort(-scores, kind="stable")[:k]
            self.rows[query] = np.concatenate([self.rows[query], rows[columns]])[order]
            self._best[query] = scores[order]


def _true_columns(mask: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each row of a matrix that has true entries, with the columns of these."""
    for row in np.flatnonzero(mask.any(axis=1)).tolist():
        yield row, np.flatnonzero(mask[row])


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
