"""Exact top-k by inner product: the oracle that every index is held against, and the path for narrow filters."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError

_BLOCK_FLOATS = 1 << 22  # 16 MiB of float32 in one block of vectors, and as much again in its scores
_QUERIES_PER_PASS = 256
_LARGEST_COMPONENT = 1e15  # far above any sane query; keeps every inner product finite in float32


def check_queries(queries: NDArray[np.floating], dim: int) -> NDArray[np.float32]:
    """Hold queries to the rules of every index and make them contiguous float32.

    Args:
        queries: (B, dim), any float dtype.
        dim: Σd of the vectors that are searched.

    Returns:
        (B, dim) C-contiguous float32; the very same array when it was that already.

    Raises:
        SearchError: another shape or dtype, or a value that is not finite or absurdly large (above 1e15).
    """
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise SearchError(f"queries must be (B, {dim}), got {queries.shape}")
    if not np.issubdtype(queries.dtype, np.floating):
        raise SearchError(f"queries must be floating point, got {queries.dtype}")
    with np.errstate(over="ignore"):
        checked = np.ascontiguousarray(queries, dtype=np.float32)
    sane = np.abs(checked) <= _LARGEST_COMPONENT  # False for NaN
    if not sane.all():
        row = int(np.argmin(sane.all(axis=1)))
        raise SearchError(
            f"queries must be finite and at most {_LARGEST_COMPONENT:g} in size, query {row} is not; check the encoder "
            "and the slot weights"
        )
    return checked


def check_k(k: int) -> None:
    """Hold k to k ≥ 1.

    Raises:
        SearchError: k is below 1.
    """
    if k < 1:
        raise SearchError(f"k must be at least 1, got {k}")


def check_allowed(allowed: NDArray[np.bool_], queries: int, rows: int) -> None:
    """Hold a mask of allowed rows to (n,) or (B, n) bool.

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
    """The k rows of the largest inner product per query, by brute force in float32.

    Memory stays bounded whatever n and B are: queries go in passes, vectors in blocks (they may be memory-mapped and
    float16). A mask shared by all queries costs only its allowed rows.

    Args:
        queries: (B, Σd), finite.
        vectors: (n, Σd) stored vectors, finite.
        k: at least 1; may exceed n.
        allowed: (n,) or (B, n) bool, the rows that may be found; None allows all.

    Returns:
        (B, k) int64 rows, padded with −1, and (B, k) float32 scores, padded with −inf; scores never increase along a
        row, equal scores are ordered by lower row.

    Raises:
        SearchError: a shape, dtype or value breaks a rule.
    """
    if vectors.ndim != 2:
        raise SearchError(f"vectors must be (n, Σd), got {vectors.shape}")
    checked = check_queries(queries, vectors.shape[1])
    check_k(k)
    if allowed is not None:
        check_allowed(allowed, checked.shape[0], vectors.shape[0])
    rows = np.full((checked.shape[0], k), -1, dtype=np.int64)
    scores = np.full((checked.shape[0], k), -np.inf, dtype=np.float32)
    for start in range(0, checked.shape[0], _QUERIES_PER_PASS):
        part = slice(start, start + _QUERIES_PER_PASS)
        mask = allowed[part] if allowed is not None and allowed.ndim == 2 else allowed
        _one_pass(checked[part], vectors, mask, rows[part], scores[part])
    return rows, scores


def _one_pass(
    queries: NDArray[np.float32],
    vectors: NDArray[np.floating],
    allowed: NDArray[np.bool_] | None,
    best_rows: NDArray[np.int64],
    best_scores: NDArray[np.float32],
) -> None:
    """Fill ``best_rows`` and ``best_scores`` (views, preset to −1 and −inf) for one pass of queries."""
    k = best_rows.shape[1]
    shared = np.flatnonzero(allowed) if allowed is not None and allowed.ndim == 1 else None
    own = allowed if allowed is not None and allowed.ndim == 2 else None
    for numbers, block in _blocks(vectors, shared, queries.shape[0]):
        scored = queries @ block.T
        if own is not None:
            scored[~own[:, numbers]] = -np.inf
        # A later row only displaces an earlier one with a strictly larger score, so ties stay with the lower row.
        hopeful = scored > best_scores[:, -1:]
        for query in np.flatnonzero(hopeful.any(axis=1)):
            columns = np.flatnonzero(hopeful[query])
            candidates = np.concatenate([best_scores[query], scored[query, columns]])
            origin = np.concatenate([best_rows[query], numbers[columns]])
            order = _top(candidates, k)
            best_rows[query] = origin[order]
            best_scores[query] = candidates[order]


def _blocks(
    vectors: NDArray[np.floating], chosen: NDArray[np.int64] | None, queries: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Row numbers, ascending, with their vectors as float32, in blocks of bounded size."""
    total = vectors.shape[0] if chosen is None else chosen.shape[0]
    step = max(1, _BLOCK_FLOATS // max(1, vectors.shape[1], queries))
    for start in range(0, total, step):
        stop = min(start + step, total)
        if chosen is None:
            yield np.arange(start, stop, dtype=np.int64), np.asarray(vectors[start:stop], dtype=np.float32)
        else:
            yield chosen[start:stop], np.asarray(vectors[chosen[start:stop]], dtype=np.float32)


def _top(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Positions of the k largest of at least k scores, descending, equal scores by lower position."""
    bound = np.partition(scores, scores.shape[0] - k)[scores.shape[0] - k]
    above = np.flatnonzero(scores > bound)
    ties = np.flatnonzero(scores == bound)[: k - above.shape[0]]
    positions = np.sort(np.concatenate([above, ties]))
    return positions[np.argsort(-scores[positions], kind="stable")]


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """Share of the exact rows that were found, over all queries; 1 is perfect.

    Args:
        found: (B, k) int64 rows of the index, −1 = none.
        exact: (B, k') int64 rows of :func:`exact_top_k` for the same queries, −1 = none.

    Returns:
        0 … 1; 1.0 when there was nothing to find.

    Raises:
        SearchError: the arrays hold different numbers of queries.
    """
    if found.ndim != 2 or exact.ndim != 2 or found.shape[0] != exact.shape[0]:
        raise SearchError(f"recall needs found (B, k) and exact (B, k'), got {found.shape} and {exact.shape}")
    hits, wanted = 0, 0
    for found_row, exact_row in zip(found, exact, strict=True):
        real = exact_row[exact_row >= 0]
        hits += int(np.isin(real, found_row).sum())
        wanted += real.shape[0]
    return hits / wanted if wanted else 1.0
