"""Computes the query vector of a weighted history (docs/method.md, "From VLM vectors to an online encoder", point 5).

It is our own extension; the paper has no weighted items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.lists.list_query import FoundParts, ListQuery

_SMALLEST_WEIGHT = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True, eq=False)
class WeightedHistory:
    """The items of a history that shape the query vector, with their weights.

    Attributes:
        rows: (h,) int64 rows of items that can be found, oldest first.
        weights: (h,) float64, none of them 0; above 0 attracts, below 0 pushes away.
        plain: whether every weight is 1, so that the encoder's output is the query.
        positive: rows with a weight above 0, oldest first.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    plain: bool
    positive: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[int], weights: Sequence[float]) -> "WeightedHistory":
        """The history of as many rows and weights, oldest first."""
        items, factors = np.array(rows, dtype=np.int64), np.array(weights, dtype=np.float64)
        if weights.count(1) == len(weights):  # nearly every history: no mask is made then
            return cls(items, factors, True, items)
        return cls(items, factors, False, items[factors > 0])

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def sequence_lists(self, slot_weights: NDArray[np.float32] | None, found: FoundParts | None = None) -> ListQuery:
        """The lists of the positive items, of which older ones count less; see :func:`sequence_query`."""
        if self.plain:
            return ListQuery(self.rows, None, slot_weights, found=found)
        positive = self.weights[self.weights > 0]
        weights = None if (positive == 1).all() else np.maximum(positive, _SMALLEST_WEIGHT).astype(np.float32)
        return ListQuery(self.positive, weights, slot_weights, found=found)

    def mean_lists(self, slot_weights: NDArray[np.float32] | None, found: FoundParts | None = None) -> ListQuery:
        """The lists of the positive items, weighed as :func:`mean_query` weighs the items, whatever their order."""
        weights = self.weights[self.weights > 0] / np.abs(self.weights).sum()
        weights = np.maximum(weights, _SMALLEST_WEIGHT).astype(np.float32)
        return ListQuery(self.positive, weights, slot_weights, recency=False, found=found)

    def newest(self, limit: int) -> "WeightedHistory":
        """This history with only its newest ``limit`` positive items; all negative ones stay."""
        left_out = len(self.positive) - limit
        if left_out <= 0:
            return self
        if self.plain:
            rows = self.rows[left_out:]
            return WeightedHistory(rows, self.weights[left_out:], True, rows)
        kept = np.ones(len(self), dtype=np.bool_)
        kept[np.flatnonzero(self.weights > 0)[:left_out]] = False
        return WeightedHistory.of(self.rows[kept].tolist(), self.weights[kept].tolist())


def sequence_query(
    encoded: NDArray[np.float32], vectors: NDArray[np.float32], weights: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Shift an encoder's output by weights: ``e + ‖e‖ · [Σ_{w>0}(w_i − 1) x_i + Σ_{w<0} w_i x_i] / n``.

    Args:
        encoded: (Σd,) float32, the encoder's output ``e`` for the items with a weight above 0.
        vectors: (n, Σd) float32, stored vectors of all items of the weighted history.
        weights: (n,) float64, none of them 0.

    Returns:
        (Σd,) float32; equal to ``encoded`` if every weight is 1.
    """
    extra = np.where(weights > 0, weights - 1.0, weights)
    shift = np.linalg.norm(encoded) * (extra @ vectors) / len(weights)
    return np.asarray(encoded + shift, dtype=np.float32)


def mean_query(vectors: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """The query of `similar`: ``Σ w_i x_i / Σ|w_i|``, without the sequence.

    Args:
        vectors: (n ≥ 1, Σd) float32 stored vectors.
        weights: (n,) float64, none of them 0.

    Returns:
        (Σd,) float32; the item's own vector for a single item of weight 1.
    """
    return np.asarray((weights @ vectors) / np.abs(weights).sum(), dtype=np.float32)
