"""Implements baselines learned from the matrix of users and items: item kNN and EASE."""

# Both read a history as the set of its items, whatever their order: one column per item, 1 where the user has it.

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.sparse import csr_matrix, vstack

from training.data.sequences import Sequences
from training.errors import EvaluationError

EASE_BYTES_PER_PAIR = 16
"""Memory at the peak per pair of items with events: the inverse in float64, and two results in float32."""
_ROWS_PER_BLOCK = 512


class ItemKnn:
    """Nearest items by the cosine of their sets of users (Deshpande and Karypis, 2004).

    The similarity of items i and j is ``users of both / (√(users of i · users of j) + shrink)``. A history scores with
    the sum over its items.

    Args:
        train: training histories.
        items: size of the catalogue n.
        neighbours: nearest items of an item that count.
        shrink: makes pairs with few users less similar.
    """

    def __init__(self, train: Sequences, items: int, *, neighbours: int, shrink: float) -> None:
        users = _matrix([train.of(user) for user in range(len(train))], items)
        sizes = np.sqrt(np.asarray(users.sum(axis=0)).ravel())
        by_item = users.T.tocsr()  # rows are sliced without reading the whole matrix, columns would not be
        blocks = [
            _nearest((by_item[start : start + _ROWS_PER_BLOCK] @ users).tocsr(), start, sizes, neighbours, shrink)
            for start in range(0, items, _ROWS_PER_BLOCK)
        ]
        self._items = items
        self._similarities = vstack(blocks, format="csr")

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32, 0 for an item that is near none of the history."""
        return np.asarray((_matrix(histories, self._items) @ self._similarities).toarray(), dtype=np.float32)


class Ease:
    """The linear model of all items on all others (EASE, Steck, 2019), exact.

    With the Gram matrix ``G = XᵀX`` of the users and ``P = (G + λI)⁻¹`` the weights are ``B_ij = −P_ij / P_jj``, 0 on
    the diagonal. Items without an event have weights of 0 and are left out of the inverse.

    Args:
        train: training histories.
        items: size of the catalogue n.
        regularisation: λ, above 0.

    Raises:
        EvaluationError: the regularisation is too small for the Gram matrix.
    """

    def __init__(self, train: Sequences, items: int, *, regularisation: float) -> None:
        self._items, self._known = items, np.unique(train.rows)
        users = _matrix([train.of(user) for user in range(len(train))], items)[:, self._known]
        gram = (users.T @ users).astype(np.float64).toarray(order="F")
        gram[np.diag_indices(len(gram))] += regularisation
        factor, failed = lapack.dpotrf(gram, lower=1, overwrite_a=1)
        inverse, singular = lapack.dpotri(factor, lower=1, overwrite_c=1)
        if failed or singular:
            raise EvaluationError(f"EASE: a regularisation of {regularisation} is too small; use a larger one")
        self._weights = _ease_weights(inverse)

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32; 0 for an item without a training event."""
        scored = np.zeros((len(histories), self._items), dtype=np.float32)
        scored[:, self._known] = _matrix(histories, self._items)[:, self._known] @ self._weights
        return scored


def _matrix(histories: Sequence[NDArray[np.int64]], items: int) -> csr_matrix:
    """(B, n) float32, 1 where an item is in a history."""
    rows = [np.zeros(0, dtype=np.int64), *(np.unique(history) for history in histories)]
    offsets = np.cumsum([len(row) for row in rows])
    columns = np.concatenate(rows)
    return csr_matrix((np.ones(len(columns), np.float32), columns, offsets), shape=(len(histories), items))


def _nearest(both: csr_matrix, start: int, sizes: NDArray[np.floating], neighbours: int, shrink: float) -> csr_matrix:
    """The nearest items of a block of items, itself left out.

    Args:
        both: (block, n) users of both items.
        start: row of the block's first item.
        sizes: (n,) square root of the users of each item.
        neighbours: most items of a row.
        shrink: see :class:`ItemKnn`.
    """
    rows = np.repeat(np.arange(both.shape[0]), np.diff(both.indptr)) + start
    weights = both.data / (sizes[rows] * sizes[both.indices] + shrink)
    weights[rows == both.indices] = 0
    # Best first within each row; ties by item.
    order = np.lexsort((both.indices, -weights, rows))
    places = np.arange(len(order)) - both.indptr[rows - start]
    kept = order[(places < neighbours) & (weights[order] > 0)]
    return csr_matrix((weights[kept].astype(np.float32), (rows[kept] - start, both.indices[kept])), shape=both.shape)


def _ease_weights(inverse: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n, n) float32 weights from the lower triangle of P."""
    scale = -1.0 / inverse.diagonal()
    weights = np.empty(inverse.shape, dtype=np.float32)
    for start in range(0, len(inverse), _ROWS_PER_BLOCK):
        block, after = slice(start, start + _ROWS_PER_BLOCK), slice(start + _ROWS_PER_BLOCK, None)
        own = np.tril(inverse[block, block])
        weights[block, :start] = inverse[block, :start] * scale[:start]
        weights[block, block] = (own + own.T) * scale[block]
        weights[block, after] = inverse[after, block].T * scale[after]
    np.fill_diagonal(weights, 0)
    return weights
