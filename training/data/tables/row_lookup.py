"""Finds the rows of items by their ids, without a Python object for each item of the catalogue."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.errors import EmbeddingsError


class RowLookup:
    """Rows of some items: 24 bytes an item, a tenth of a dict.

    Args:
        item_ids: ids of the whole catalogue, in its order; distinct.
        chosen: (n,) bool, the items that can be found; None: all.
    """

    def __init__(self, item_ids: pl.Series, chosen: NDArray[np.bool_] | None = None) -> None:
        rows = np.arange(len(item_ids), dtype=np.int64) if chosen is None else np.flatnonzero(chosen)
        ids = item_ids if chosen is None else item_ids.filter(pl.Series(chosen))
        order = ids.arg_sort()
        self._ids = ids.gather(order)
        self._rows: NDArray[np.int64] = rows[order.to_numpy()]

    def find(self, item_ids: Sequence[str] | pl.Series) -> NDArray[np.int64]:
        """(k,) int64 rows of these ids; −1 where there is no such item."""
        wanted = pl.Series(item_ids, dtype=pl.String)
        places = np.minimum(self._ids.search_sorted(wanted).to_numpy(), max(len(self._ids) - 1, 0))
        if not len(self._ids):
            return np.full(len(wanted), -1, dtype=np.int64)
        known = (self._ids.gather(places) == wanted).to_numpy()
        return np.where(known, self._rows[places], -1)

    def rows(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """(k,) int64 rows of these ids.

        Raises:
            EmbeddingsError: there is no item of one of them.
        """
        found = self.find(item_ids)
        if (found < 0).any():
            raise EmbeddingsError(
                f"item {item_ids[int(found.argmin())]!r} is not among those to embed; embed the catalogue again"
            )
        return found
