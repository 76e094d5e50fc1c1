"""Exact top-k by inner product: the oracle that every index is held against, and the path for narrow filters."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError
from index.search.float16 import to_float32

_BLOCK_FLOATS = 1 << 22  # 16 MiB of float32 in one block of vectors, and as much again in its scores
_CACHED_FLOATS = 1 << 19  # for few queries a block had better stay in the processor's cache: half the time
_FEW_QUERIES = 16
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
    checked = _check(queries, vectors, k)
    if allowed is not None:
        check_allowed(allowed, checked.shape[0], vectors.shape[0])
    chosen = np.flatnonzero(allowed) if allowed is not None and allowed.ndim == 1 else None
    own = allowed if allowed is not None and allowed.ndim == 2 else None
    return _top_k(checked, vectors, k, chosen, own)


def exact_top_k_among(
    queries: NDArray[np.floating], vectors: NDArray[np.floating], k: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As :func:`exact_top_k`, among given rows only: the path of narrow filters, whose rows are known already.

    Args:
        queries: (B, Σd), finite.
        vectors: (n, Σd) stored vectors, finite.
        k: at least 1; may exceed the number of rows.
        rows: (r,) int64, ascending, each in 0 … n − 1.

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
    """As :func:`exact_top_k` under each of several masks, but every score is computed only once.

    Args:
        queries: (B, Σd), finite.
        vectors: (n, Σd) stored vectors, finite.
        k: at least 1; may exceed n.
        masks: (n,) bool each, or None for all rows.
        progress: called with the share done, 0 … 1.

    Returns:
        One answer a mask, as :func:`exact_top_k` gives it.

    Raises:
        SearchError: a shape, dtype or value breaks a rule.
    """
    checked = _check(queries, vectors, k)
    for mask in masks:
        if mask is not None:
            check_allowed(mask, -1, vectors.shape[0])
    best = [_Best.of(checked.shape[0], k) for _ in masks]
    for part in _passes(checked.shape[0]):
        for numbers, block in _blocks(vectors, None, checked[part].shape[0]):
            progress((part.start + checked[part].shape[0] * int(numbers[0]) / vectors.shape[0]) / checked.shape[0])
            scored = checked[part] @ block.T
            for mask, kept in zip(masks, best, strict=True):
                columns = slice(None) if mask is None else np.flatnonzero(mask[numbers])
                kept.take(part, numbers[columns], scored[:, columns])
    return [(kept.rows, kept.scores) for kept in best]


def _check(queries: NDArray[np.floating], vectors: NDArray[np.floating], k: int) -> NDArray[np.float32]:
    if vectors.ndim != 2:
        raise SearchError(f"vectors must be (n, Σd), got {vectors.shape}")
    check_k(k)
    return check_queries(queries, vectors.shape[1])


def _top_k(
    queries: NDArray[np.float32],
    vectors: NDArray[np.floating],
    k: int,
    chosen: NDArray[np.int64] | None,
    own: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best k among ``chosen`` rows (None: all), with a mask of their ``own`` for each query."""
    best = _Best.of(queries.shape[0], k)
    for part in _passes(queries.shape[0]):
        for numbers, block in _blocks(vectors, chosen, queries[part].shape[0]):
            scored = queries[part] @ block.T
            if own is not None:
                scored[~own[part][:, numbers]] = -np.inf
            best.take(part, numbers, scored)
    return best.rows, best.scores


@dataclass(frozen=True)
class _Best:
    """The best rows so far: (B, k) int64 rows, −1 = none, and (B, k) float32 scores, descending, −inf = none."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, queries: int, k: int) -> "_Best":
        return cls(np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32))

    def take(self, part: slice, numbers: NDArray[np.int64], scored: NDArray[np.float32]) -> None:
        """Merge the scores (part, c) of a block of rows, which come in ascending order."""
        rows, scores = self.rows[part], self.scores[part]
        # A later row only displaces an earlier one with a strictly larger score, so ties stay with the lower row.
        hopeful = scored > scores[:, -1:]
        for query in np.flatnonzero(hopeful.any(axis=1)):
            columns = np.flatnonzero(hopeful[query])
            candidates = np.concatenate([scores[query], scored[query, columns]])
            origin = np.concatenate([rows[query], numbers[columns]])
            order = _top(candidates, scores.shape[1])
            rows[query] = origin[order]
            scores[query] = candidates[order]


def _passes(queries: int) -> Iterator[slice]:
    for start in range(0, queries, _QUERIES_PER_PASS):
        yield slice(start, start + _QUERIES_PER_PASS)


def _blocks(
    vectors: NDArray[np.floating], chosen: NDArray[np.int64] | None, queries: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Row numbers, ascending, with their vectors as float32, in blocks of bounded size."""
    total = vectors.shape[0] if chosen is None else chosen.shape[0]
    floats = min(_BLOCK_FLOATS, _CACHED_FLOATS) if queries < _FEW_QUERIES else _BLOCK_FLOATS
    step = max(1, floats // max(1, vectors.shape[1], queries))
    for start in range(0, total, step):
        stop = min(start + step, total)
        if chosen is None:
            yield np.arange(start, stop, dtype=np.int64), to_float32(vectors[start:stop])
        else:
            numbers = chosen[start:stop]
            yield numbers, to_float32(vectors.take(numbers, axis=0))


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
