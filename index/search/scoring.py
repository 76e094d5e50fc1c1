"""Computes scores Σ_m ⟨q^m, x^m⟩ in float32, and their parts per slot, which sum to them but for rounding.

See docs/method.md, "From VLM vectors to an online encoder", point 4. Every row that an index returns is re-scored here
from its stored vector, so a score depends neither on the kind of index nor on k.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.items.slots import SlotLayout
from index.search.float16 import to_float32

ReadVectors = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Returns stored vectors, (*rows.shape, Σd) float32, of int64 rows of any shape, none of them negative."""


class FoundVectors:
    """Stored vectors of some rows, which another store gave with the result of a search or by row; immutable.

    Args:
        rows: (r,) int64 in any order, different.
        vectors: (r, Σd) float32.
    """

    def __init__(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        order = np.argsort(rows)
        self._rows, self._vectors = rows[order], vectors[order]

    def joined_with(self, other: "FoundVectors | None") -> "FoundVectors":
        """These vectors and those of another, which may have the same rows."""
        if other is None:
            return self
        rows = np.concatenate((self._rows, other._rows))  # noqa: SLF001 - of this class
        different, first = np.unique(rows, return_index=True)
        return FoundVectors(different, np.concatenate((self._vectors, other._vectors))[first])  # noqa: SLF001

    def has(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows, (r,) int64, these are the vectors of, (r,) bool."""
        return np.isin(rows, self._rows)

    def of(self, rows: NDArray[np.int64], others: ReadVectors) -> NDArray[np.float32]:
        """Vectors of rows.

        Args:
            rows: int64 of any shape, not negative.
            others: returns the vectors, (o, Σd) float32, of the rows, (o,) int64, that did not come with the result.

        Returns:
            (*rows.shape, Σd) float32.
        """
        flat = rows.reshape(-1)
        places = np.searchsorted(self._rows, flat)
        found = np.zeros(flat.shape[0], dtype=np.bool_)
        inside = places < self._rows.shape[0]
        found[inside] = self._rows[places[inside]] == flat[inside]
        if found.all():
            vectors = self._vectors[places]
        else:
            vectors = np.empty((flat.shape[0], self._vectors.shape[1]), dtype=np.float32)
            vectors[found] = self._vectors[places[found]]
            vectors[~found] = others(flat[~found])
        return vectors.reshape(*rows.shape, self._vectors.shape[1])


@dataclass(frozen=True)
class ScoredRows:
    """The best rows per query and their scores, best first.

    Attributes:
        rows: (B, k) int64, padded with −1 at the end.
        scores: (B, k) float32, never increasing; −inf where the row is −1.
        vectors: those that came with the rows from another store; None: read them from the bundle.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    vectors: FoundVectors | None = None


def joined(*parts: FoundVectors | None) -> FoundVectors | None:
    """The vectors of all parts; None if no part has any."""
    real = [part for part in parts if part is not None]
    return functools.reduce(FoundVectors.joined_with, real) if real else None


def slot_scores(queries: NDArray[np.float32], vectors: NDArray[np.float32], layout: SlotLayout) -> NDArray[np.float32]:
    """Inner product of each query with its own vectors, per slot.

    Args:
        queries: (B, Σd) float32, slot weights already multiplied in.
        vectors: (B, c, Σd) float32 stored vectors.
        layout: the slots.

    Returns:
        (B, c, slots) float32, slots in the order of the layout; 0 if a vector lacks the slot.
    """
    dim = layout.slots[0].dim
    if all(slot.dim == dim for slot in layout.slots):  # one call has them all, with the same sums
        by_slot = (len(layout.slots), dim)
        equal: NDArray[np.float32] = np.vecdot(
            vectors.reshape(*vectors.shape[:2], *by_slot), queries.reshape(len(queries), 1, *by_slot)
        )
        return equal
    parts = np.empty((*vectors.shape[:2], len(layout.slots)), dtype=np.float32)
    start = 0
    for position, slot in enumerate(layout.slots):
        stop = start + slot.dim
        np.vecdot(vectors[:, :, start:stop], queries[:, None, start:stop], out=parts[:, :, position])
        start = stop
    return parts


def whole_scores(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner product of each query with its own vectors, over all slots.

    A score is the same for any other queries and vectors beside it.

    Args:
        queries: (B, Σd) float32, slot weights already multiplied in.
        vectors: (B, c, Σd) float32 stored vectors.

    Returns:
        (B, c) float32.
    """
    scores: NDArray[np.float32] = np.vecdot(vectors, queries[:, None])
    return scores


def rescore(
    queries: NDArray[np.float32],
    rows: NDArray[np.int64],
    vectors: NDArray[np.floating],
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Score candidate rows from the stored vectors and return the best k.

    Args:
        queries: (B, Σd) float32.
        rows: (B, c) int64 candidates in any order, −1 = none, without duplicates.
        vectors: (n, Σd) stored vectors.
        k: at least 1; may exceed c.

    Returns:
        (B, k) int64 rows padded with −1 and (B, k) float32 scores padded with −inf, descending, ties by lower row.
    """
    scores = whole_scores(queries, gather(vectors, rows))
    scores[rows < 0] = -np.inf
    return best_of(rows, scores, k)


def best_of(
    rows: NDArray[np.int64], scores: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sort scored rows and keep the best k.

    Args:
        rows: (B, c) int64 in any order, −1 = none, otherwise without duplicates.
        scores: (B, c) float32; −inf where the row is −1.
        k: at least 1; may exceed c.

    Returns:
        As of :func:`rescore`.
    """
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    line = np.arange(rows.shape[0])[:, None]
    return padded(rows[line, order], scores[line, order], k)


def padded(
    rows: NDArray[np.int64], scores: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(B, k) rows padded with −1 and scores padded with −inf, of (B, ≤ k) each."""
    missing = k - rows.shape[1]
    if missing > 0:
        rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    return rows, scores


def gather(vectors: NDArray[np.floating], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Stored vectors of rows as float32.

    Args:
        vectors: (n, Σd) stored vectors, n ≥ 1.
        rows: int64 of any shape; a negative row returns row 0, which the caller must mask.

    Returns:
        (*rows.shape, Σd) float32.
    """
    return to_float32(vectors.take(rows, axis=0, mode="clip"))
