"""Scores items for histories by a model's own vectors, both modalities fused as in the loss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from training.config.types import Fusion

Vectors: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Modality → (n, D) float32, rows of length 1, zeros where it is absent."""
_DECIMALS = 5
"""Equal prompts must tie, but their vectors differ in the last digits, depending on the batch they were encoded in."""


def fused_scores(histories: Vectors, items: Vectors, fusion: "Fusion") -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Score every item for every history.

    Args:
        histories: vectors of B histories, of at least the modalities of ``items``.
        items: vectors of n items; their modalities are fused.
        fusion: ``concat``, the mean of the cosines over the modalities that both have, or ``sum``, the cosine of the
            sums.

    Returns:
        (B, n) float32 in −1 … 1, higher is better, 0 where history and item share no modality; and (B, n) bool, True
        where they share one.
    """
    if fusion == "sum":
        left, right = (_unit(np.sum([side[name] for name in items], axis=0)) for side in (histories, items))
        return np.round(left @ right.T, _DECIMALS), _present(left)[:, None] & _present(right)[None, :]
    products = [histories[name] @ items[name].T for name in items]
    shared = np.array([_present(histories[name])[:, None] & _present(items[name])[None, :] for name in items])
    count = shared.sum(axis=0)
    scores = np.sum(products, axis=0) / np.maximum(count, 1)
    return np.round(scores, _DECIMALS).astype(np.float32), count > 0


def _present(rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(n,) bool, rows that are not all zero."""
    return np.asarray(rows.any(axis=1))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6), dtype=np.float32)
