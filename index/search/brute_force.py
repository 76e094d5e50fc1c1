"""Computes the exact top k by inner product: the reference for every index, and the search under narrow filters."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError
from index.search.float16 import to_float32

_BLOCK_FLOATS = 1 << 22  # 16 MiB of float32 in one block of vectors, and as much again in its scores
_CACHED_FLOATS = 1 << 19  # with few queries, blocks that fit the processor's cache take half the time
_FEW_QUERIES = 16
_QUERIES_PER_PASS = 256
_LARGEST_COMPONENT = 1e15  # far above any real query; keeps every inner product finite in float32


def check_queries(queries: NDArray[np.floating], dim: int) -> NDArray[np.float32]:
    """Validate queries and make them contiguous float32.

    Args:
        queries: (B, dim), any float dtype.
        dim: Σd of the searched vectors.

    Returns:
        (B, dim) C-contiguous float32; the same array if it has this form already.

    Raises:
        SearchError: another shape or dtype, or a value that is not finite or above 1e15 in size.
    """
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise SearchError(f"queries must be (B, {dim}), got {queries.shape}")
    if not np.issubdtype(queries.dtype, np.floating):
        raise SearchError(f"queries must be floating point, got {queries.dtype}")
    with np.errstate(over="ignore"):
        checked = np.ascontiguousarray(queries, dtype=np.float32)
        flat = checked.reshape(-1)
        if np.vdot(flat, flat) <= _LARGEST_COMPONENT:  # so is the largest component; any real query is far below
            return checked
    valid = np.abs(checked) <= _LARGEST_COMPONENT  # False for NaN
    if not valid.all():
        row = int(np.argmin(valid.all(axis=1)))
        raise SearchError(
            f"queries must be finite and at most {_LARGEST_COMPONENT:g} in size, query {row} is not; check the encoder "
            "and the slot weights"
        )
    return checked


def check_k(k: int) -> None:
    """Check that k is at least 1.

    Raises:
        SearchError: k is below 1.
    """
    if k < 1:
        raise SearchError(f"k must be at least 1, got {k}")


def check_allowed(allowed: NDArray[np.bool_], queries: int, rows: int) -> None:
    """Check a mask of allowed rows: (n,) or (B, n) bool.

    Args:
        allowed: the mask.
        queries: B; −1 to accept only (n,).
        rows: n.

    Raises:
        SearchError: another dtype or shape.
    """
    if allowed.dtype != np.bool_ or allowed.shape not in ((rows,), (queries, rows)):
        raise SearchError(
            f"allowed must be bool of shape ({rows},) or ({queries}, {rows}), got {allowed.dtype} {allowed.shape}"
        )


def exact_top_k(
    queries: NDArray[np.floating],
    vectors: NDArray[np.floating],
    k: int,
    *,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows with the largest inner product per query, by brute force in float32.

    Memory is bounded for any n and B: queries are processed in passes and vectors, which may be memory-mapped float16,
    in blocks. With a mask shared by all queries only the allowed rows are read.

    Args:
        queries: (B, Σd), finite.
        vectors: (n, Σd) stored vectors, finite.
        k: at least 1; may exceed n.
        allowed: (n,) or (B, n) bool, the rows that may be found; None allows all.

    Returns:
        (B, k) int64 rows padded with −1, and (B, k) float32 scores padded with −inf, descending, ties by lower row.

    Raises:
        SearchError: a shape, dtype or value breaks a rule.
    """
    checked = _check(queries, vectors, k)
    if allowed is not None:
        check_allowed(allowed, checked.shape[0], vectors.shape[0])
    shared_rows = np.flatnonzero(allowed) if allowed is not None and allowed.ndim == 1 else None
    query_masks = allowed if allowed is not None and allowed.ndim == 2 else None
    return _top_k(checked, vectors, k, shared_rows, query_masks)


def exact_top_k_among(
    queries: NDArray[np.floating], vectors: NDArray[np.floating], k: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As :func:`exact_top_k`, among the given rows only; for narrow filters, whose rows are known already.

    Args:
        queries: (B, Σd), finite.
        vectors: (n, Σd) stored vectors, finite.
        k: at least 1; may exceed the number of rows.
        rows: (r,) int64, ascending, each in 0 … n − 1.

    Returns:
        As of :func:`exact_top_k`.

    Raises:
        SearchError: a shape, dtype or value breaks a rule.
    """
    return _top_k(_check(queries, vectors, k), vectors, k, rows, None)


def exact_top_k_each(
    queries: NDArray[np.floating],
    vectors: NDArray[np.floating],
    k: int,
    masks: Sequence[NDArray[np.bool_] | None],
    progress: Callable[[float], None] = lambda _: None,
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """As :func:`exact_top_k` for each of several masks; every score is computed once.

    Args:
        queries: (B, Σd), finite.
        vectors: (n, Σd) stored vectors, finite.
        k: at least 1; may exceed n.
        masks: (n,) bool each, or None for all rows.
        progress: called with the share done, 0 … 1.

    Returns:
        One result per mask, as of :func:`exact_top_k`.

    Raises:
        SearchError: a shape, dtype or value breaks a rule.
    """
    checked = _check(queries, vectors, k)
    for mask in masks:
        if mask is not None:
            check_allowed(mask, -1, vectors.shape[0])
    best = [_Best.of(checked.shape[0], k) for _ in masks]
    for part in _passes(checked.shape[0]):
        for rows, block in _blocks(vectors, None, checked[part].shape[0]):
            progress((part.start + checked[part].shape[0] * int(rows[0]) / vectors.shape[0]) / checked.shape[0])
            scores = checked[part] @ block.T
            for mask, top in zip(masks, best, strict=True):
                columns = slice(None) if mask is None else np.flatnonzero(mask[rows])
                top.merge(part, rows[columns], scores[:, columns])
    return [(top.rows, top.scores) for top in best]


def _check(queries: NDArray[np.floating], vectors: NDArray[np.floating], k: int) -> NDArray[np.float32]:
    if vectors.ndim != 2:
        raise SearchError(f"vectors must be (n, Σd), got {vectors.shape}")
    check_k(k)
    return check_queries(queries, vectors.shape[1])


def _top_k(
    queries: NDArray[np.float32],
    vectors: NDArray[np.floating],
    k: int,
    shared_rows: NDArray[np.int64] | None,
    query_masks: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best k among ``shared_rows`` (None: all rows), further restricted per query by ``query_masks`` (B, n)."""
    best = _Best.of(queries.shape[0], k)
    for part in _passes(queries.shape[0]):
        for rows, block in _blocks(vectors, shared_rows, queries[part].shape[0]):
            scores = queries[part] @ block.T
            if query_masks is not None:
                scores[~query_masks[part][:, rows]] = -np.inf
            best.merge(part, rows, scores)
    return best.rows, best.scores


@dataclass(frozen=True)
class _Best:
    """The best rows of the blocks so far.

    Attributes:
        rows: (B, k) int64, −1 = none.
        scores: (B, k) float32, descending, −inf = none.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, queries: int, k: int) -> "_Best":
        return cls(np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32))

    def merge(self, part: slice, block_rows: NDArray[np.int64], block_scores: NDArray[np.float32]) -> None:
        """Merge a block of rows, (c,) int64 ascending, with its scores (part, c); blocks come in ascending order."""
        rows, scores = self.rows[part], self.scores[part]
        # A later row replaces an earlier one only with a strictly larger score, so ties stay with the lower row.
        better = block_scores > scores[:, -1:]
        for query in np.flatnonzero(better.any(axis=1)):
            columns = np.flatnonzero(better[query])
            candidate_scores = np.concatenate([scores[query], block_scores[query, columns]])
            candidate_rows = np.concatenate([rows[query], block_rows[columns]])
            order = _top(candidate_scores, scores.shape[1])
            rows[query] = candidate_rows[order]
            scores[query] = candidate_scores[order]


def _passes(queries: int) -> Iterator[slice]:
    for start in range(0, queries, _QUERIES_PER_PASS):
        yield slice(start, start + _QUERIES_PER_PASS)


def _blocks(
    vectors: NDArray[np.floating], chosen: NDArray[np.int64] | None, queries: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Blocks of bounded size: (c,) int64 rows, ascending, and their (c, Σd) float32 vectors."""
    total = vectors.shape[0] if chosen is None else chosen.shape[0]
    floats = min(_BLOCK_FLOATS, _CACHED_FLOATS) if queries < _FEW_QUERIES else _BLOCK_FLOATS
    step = max(1, floats // max(1, vectors.shape[1], queries))
    for start in range(0, total, step):
        stop = min(start + step, total)
        if chosen is None:
            yield np.arange(start, stop, dtype=np.int64), to_float32(vectors[start:stop])
        else:
            rows = chosen[start:stop]
            yield rows, to_float32(vectors.take(rows, axis=0))


def _top(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Positions of the k largest of at least k scores, descending, equal scores by lower position."""
    bound = np.partition(scores, scores.shape[0] - k)[scores.shape[0] - k]
    above = np.flatnonzero(scores > bound)
    ties = np.flatnonzero(scores == bound)[: k - above.shape[0]]
    positions = np.sort(np.concatenate([above, ties]))
    return positions[np.argsort(-scores[positions], kind="stable")]


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """Share of the exact rows that the index found, over all queries, 0 … 1; higher is better.

    Args:
        found: (B, k) int64 rows that the index found, −1 = none.
        exact: (B, k') int64 rows of :func:`exact_top_k` for the same queries, −1 = none.

    Returns:
        0 … 1; 1.0 if there are no exact rows.

    Raises:
        SearchError: the arrays have different numbers of queries.
    """
    if found.ndim != 2 or exact.ndim != 2 or found.shape[0] != exact.shape[0]:
        raise SearchError(f"recall needs found (B, k) and exact (B, k'), got {found.shape} and {exact.shape}")
    hits, total = 0, 0
    for found_row, exact_row in zip(found, exact, strict=True):
        real = exact_row[exact_row >= 0]
        hits += int(np.isin(real, found_row).sum())
        total += real.shape[0]
    return hits / total if total else 1.0
