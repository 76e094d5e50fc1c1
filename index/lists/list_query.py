"""ListQuery: the history of a query whose item-to-item lists add to the scores."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError


class FoundParts:
    """What each list adds to the items that searches returned, so that it need not be computed again.

    The parts of an item depend on the history alone, so several searches may add to it, in any thread.
    """

    def __init__(self) -> None:
        self._searches: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []

    def add(self, rows: NDArray[np.int64], parts: NDArray[np.float32]) -> None:
        """Keep the parts, (k, lists) float32, of items, (k,) int64 rows; neither is changed later."""
        self._searches.append((rows, parts))

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """The parts, (k, lists) float32, of items, (k,) int64 rows; None if those of one are not known."""
        for known, parts in self._searches:
            if known[: len(rows)].tobytes() == rows.tobytes():  # as in most answers: the first of a search
                return parts[: len(rows)]
        lines = {}
        for number, (known, _) in enumerate(self._searches):
            lines.update({row: (number, line) for line, row in enumerate(known.tolist())})
        places = [lines.get(row) for row in rows.tolist()]
        if not places or None in places:
            return None
        return np.array([self._searches[place[0]][1][place[1]] for place in places if place is not None])


@dataclass(frozen=True, slots=True, eq=False)
class ListQuery:
    """The items of a history with their weights, and the weights of the slots.

    Attributes:
        rows: (h,) int64 item rows, oldest first.
        weights: (h,) float32, above 0, of each item; None: each weighs 1.
        slot_weights: (slots,) float32, at least 0, in the order of the layout; None: each weighs 1. They are those that
            are multiplied into the query.
        recency: whether older items weigh less and the oldest nothing, as the lists were fitted; False: items have
            their weights alone, however many they are.

    Raises:
        SearchError: weights of another shape than the rows, or not above 0, or slot weights below 0.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    slot_weights: NDArray[np.float32] | None = None
    recency: bool = True
    found: FoundParts | None = None

    def __post_init__(self) -> None:
        if self.rows.ndim != 1 or (self.weights is not None and self.weights.shape != self.rows.shape):
            shape = None if self.weights is None else self.weights.shape
            raise SearchError(f"a history needs (h,) rows and weights, got {self.rows.shape} and {shape}")
        if self.weights is not None and not (np.isfinite(self.weights) & (self.weights > 0)).all():
            raise SearchError(f"the weights of a history must be finite and above 0, got {self.weights.tolist()}")
        if self.slot_weights is not None and not (np.isfinite(self.slot_weights) & (self.slot_weights >= 0)).all():
            raise SearchError(f"slot weights must be finite and at least 0, got {self.slot_weights.tolist()}")

    @property
    def is_plain(self) -> bool:
        """Whether it has no weights of its own."""
        return self.weights is None and self.slot_weights is None and self.recency
