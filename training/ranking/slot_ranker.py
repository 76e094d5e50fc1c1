"""Ranks by encoder and stored vectors exactly as serving does, with inner products in float32."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Encode = Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]]
"""Histories of stored vectors, (L_i, Σd) each, to queries (B, Σd)."""


class SlotRanker:
    """Encoder and stored vectors together.

    Args:
        vectors: (n, Σd) float32 stored vectors.
        encode: the sequence encoder.
        max_history: newest items of a history that it reads.
        weights: (Σd,) float32 slot weights of a request, as :meth:`index.items.slots.SlotLayout.weights` gives them;
            None: every slot weighs 1.
        scales: (n,) float32 factors on the scores of items, as :meth:`index.items.slots.SlotLayout.weight_scales` gives
            them for these weights; None: 1 each.

    Attributes:
        findable: (n,) bool, items with a slot; no query can return the others.
    """

    def __init__(
        self,
        vectors: NDArray[np.float32],
        encode: Encode,
        max_history: int,
        weights: NDArray[np.float32] | None = None,
        scales: NDArray[np.float32] | None = None,
    ) -> None:
        self._vectors, self._encode, self._max_history, self._weights = vectors, encode, max_history, weights
        self._scales = scales
        self.findable: NDArray[np.bool_] = np.asarray(vectors.any(axis=1))

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32 scores of every item; higher is better."""
        scores = np.asarray(self.queries(histories) @ self._vectors.T, dtype=np.float32)
        return scores if self._scales is None else scores * self._scales

    def queries(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, Σd) float32 queries, weighed."""
        encoded = self._encode([self._vectors[history[-self._max_history :]] for history in histories])
        return encoded if self._weights is None else encoded * self._weights
