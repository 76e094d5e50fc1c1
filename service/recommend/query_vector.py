"""From a history with weights to a query vector: docs/method.md, "From VLM vectors to an online encoder", point 5.

All of it is our reading; the paper has no weighted items.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Taste:
    """The part of a history that shapes a query.

    Attributes:
        rows: (h,) int64 rows of items that can be found, oldest first.
        weights: (h,) float64, none of them 0; above 0 attracts, below 0 pushes away.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    @property
    def liked(self) -> NDArray[np.int64]:
        """Rows with a weight above 0, oldest first."""
        return self.rows[self.weights > 0]

    @property
    def plain(self) -> bool:
        """Whether every weight is 1, so that the encoder's answer is the query."""
        return bool((self.weights == 1).all())

    def newest(self, limit: int) -> "Taste":
        """This taste with only its newest ``limit`` liked items; what pushes away stays whole."""
        liked = np.flatnonzero(self.weights > 0)
        if liked.size <= limit:
            return self
        kept = np.ones(len(self), dtype=np.bool_)
        kept[liked[: liked.size - limit]] = False
        return Taste(self.rows[kept], self.weights[kept])


def sequence_query(
    encoded: NDArray[np.float32], vectors: NDArray[np.float32], weights: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Steer an encoder's answer by weights: ``e + ‖e‖ · [Σ_{w>0}(w_i − 1) x_i + Σ_{w<0} w_i x_i] / n``.

    Args:
        encoded: (Σd,) float32, the encoder's answer ``e`` to the items with a weight above 0.
        vectors: (n, Σd) float32, stored vectors of all items of the taste.
        weights: (n,) float64, none of them 0.

    Returns:
        (Σd,) float32; equal to ``encoded`` if every weight is 1.
    """
    extra = np.where(weights > 0, weights - 1.0, weights)
    steer = np.linalg.norm(encoded) * (extra @ vectors) / len(weights)
    return np.asarray(encoded + steer, dtype=np.float32)


def mean_query(vectors: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """The query of `similar`: ``Σ w_i x_i / Σ|w_i|``, without the sequence.

    Args:
        vectors: (n ≥ 1, Σd) float32 stored vectors.
        weights: (n,) float64, none of them 0.

    Returns:
        (Σd,) float32; the item's own vector if there is only one of weight 1.
    """
    return np.asarray((weights @ vectors) / np.abs(weights).sum(), dtype=np.float32)
