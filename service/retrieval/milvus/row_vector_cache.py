"""Caches vectors of rows within a bound in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

ENTRY_BYTES: Final = 160
"""Bytes of an entry beside its vector: 145 were measured with CPython 3.11."""


class RowVectorCache:
    """The vectors that were used last; any number of threads may use it.

    All of its memory is reserved at once, and taken as it fills.

    Args:
        most_bytes: bound of vectors and entries together; at least one vector is kept.
        dim: Σd.

    Attributes:
        capacity: most vectors.
    """

    def __init__(self, most_bytes: int, dim: int) -> None:
        self.capacity = max(1, most_bytes // self.bytes_of(dim))
        self._vectors = np.empty((self.capacity, dim), dtype=np.float32)
        self._places: OrderedDict[int, int] = OrderedDict()  # row → place of its vector, the row used last at the end
        self._lock = threading.Lock()

    @staticmethod
    def bytes_of(dim: int) -> int:
        """Bytes of one vector of ``dim`` numbers with its entry."""
        return 4 * dim + ENTRY_BYTES

    def __len__(self) -> int:
        return len(self._places)

    def get(self, rows: Sequence[int]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Vectors of rows.

        Args:
            rows: r rows.

        Returns:
            (r,) bool, the rows that are cached, and their vectors, (cached, Σd) float32, in the same order.
        """
        with self._lock:
            places = [self._places.get(row, -1) for row in rows]
            for row, place in zip(rows, places, strict=True):
                if place >= 0:
                    self._places.move_to_end(row)
            found = np.array(places, dtype=np.int64)
            cached = found >= 0
            return cached, self._vectors[found[cached]]

    def put(self, rows: Sequence[int], vectors: NDArray[np.float32]) -> None:
        """Keep vectors, in place of those that were not used for the longest time.

        Args:
            rows: r different rows.
            vectors: (r, Σd) float32.
        """
        kept = rows[: self.capacity]
        with self._lock:
            places = [self._place_of(row) for row in kept]
            self._vectors[places] = vectors[: len(kept)]

    def _place_of(self, row: int) -> int:
        """The place of a row's vector, which it has from now on."""
        place = self._places.pop(row, -1)
        if place < 0:
            full = len(self._places) == self.capacity
            place = self._places.popitem(last=False)[1] if full else len(self._places)
        self._places[row] = place
        return place
