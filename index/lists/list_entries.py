"""ListEntries: the entries of the lists of a batch of queries, with an upper bound of what they add to each item.

Most items of the lists add too little to be among the best. So the entries of a query are summed into buckets, one for
all items whose rows have the same low bits. No entry is below 0, so the sum of a bucket bounds the part of each of its
items. Only the entries of chosen buckets are sorted by item and summed exactly.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from index.lists.item_lists import ItemList

_BUCKETS_PER_ENTRY = 2  # few different items share a bucket
_FOLDS = 8


@dataclass(frozen=True, slots=True, eq=False)
class ListedItems:
    """Items in the lists of a batch of queries, with what all lists together add to their scores.

    Attributes:
        keys: (c,) int64, query · n + row, ascending and different.
        numbers: (c,) int64, the query.
        rows: (c,) int64 item rows.
        parts: (c,) float32, at least 0.
    """

    keys: NDArray[np.int64]
    numbers: NDArray[np.int64]
    rows: NDArray[np.int64]
    parts: NDArray[np.float32]

    def where(self, kept: NDArray[np.bool_]) -> "ListedItems":
        """Those that a mask, (c,) bool, keeps."""
        return ListedItems(self.keys[kept], self.numbers[kept], self.rows[kept], self.parts[kept])


class ListWindows:
    """Reads the entries of many items of a list at once, as windows of the length of the longest.

    Args:
        item_list: the list.

    Attributes:
        width: entries of the longest w.
    """

    def __init__(self, item_list: ItemList) -> None:
        self.width = item_list.longest
        self._last = len(item_list.rows) - self.width
        self._offsets = item_list.offsets
        self._full = len(item_list.rows) == len(item_list) * self.width > 0
        self._rows: NDArray[np.int32]
        self._similarities: NDArray[np.float16]
        if self._full:  # every item has a line of a table
            self._rows = item_list.rows.reshape(-1, self.width)
            self._similarities = item_list.similarities.reshape(-1, self.width)
        else:
            self._rows = sliding_window_view(item_list.rows, self.width)
            self._similarities = sliding_window_view(item_list.similarities, self.width)

    def read(self, items: NDArray[np.int64], near: NDArray[np.int32], similarities: NDArray[np.float16]) -> None:
        """Fill (h, w) ``near`` and ``similarities`` with the entries of (h,) items; beside them, similarities stay."""
        if self._full:
            self._rows.take(items, axis=0, out=near, mode="clip")
            self._similarities.take(items, axis=0, out=similarities, mode="clip")
            return
        starts, ends = self._offsets.take(items), self._offsets.take(items + 1)
        first = np.minimum(starts, self._last)
        near[...] = self._rows[first]
        places = first[:, None] + np.arange(self.width)
        own = (places >= starts[:, None]) & (places < ends[:, None])
        np.copyto(similarities, self._similarities[first], where=own)


class ListEntries:
    """The entries of a batch of queries, in the order list, query, newest item of the history, most similar item.

    Args:
        items: number of items of the catalogue n.
        owners: (h,) int64, ascending, the query of each item of a history.
        queries: number of queries B.
        near: (lists, h, w) int32 neighbours of each item.
        values: (lists, h, w) float64, at least 0, what each entry adds.

    Attributes:
        sums: (B, M) float64, at least what all lists add to any item of a bucket, but for the rounding of float64; M is
            a power of two.
    """

    def __init__(
        self,
        items: int,
        owners: NDArray[np.int64],
        queries: int,
        near: NDArray[np.int32],
        values: NDArray[np.float64],
    ) -> None:
        self._items = items
        self._near = near.reshape(-1)
        self._values = values.reshape(-1)
        longest = np.bincount(owners, minlength=1).max() if queries > 1 else len(owners)
        most = int(longest) * near.shape[0] * near.shape[2]
        self._bits = max(_BUCKETS_PER_ENTRY * most - 1, 0).bit_length()
        self.buckets = 1 << self._bits
        places = near & np.int32(self.buckets - 1)
        self._places = (places + (owners << self._bits)[:, None]).reshape(-1)
        sums = np.bincount(self._places, self._values, queries * self.buckets)
        self.sums: NDArray[np.float64] = sums.astype(np.float64, copy=False).reshape(queries, self.buckets)

    def __len__(self) -> int:
        return len(self._places)

    def strongest(self, count: int) -> NDArray[np.bool_]:
        """(B, M) bool: about ``count`` buckets of each query that have the largest sums, not fewer."""
        if self.buckets <= count:
            return np.ones(self.sums.shape, dtype=np.bool_)
        folds: NDArray[np.float64] = self.sums
        if self.buckets >= 2 * _FOLDS * count:  # the largest of several buckets stands for them
            folds = folds.reshape(len(folds), _FOLDS, self.buckets // _FOLDS).max(axis=1)
        least: NDArray[np.float64] = np.partition(folds, -count, axis=1)[:, -count, None]
        chosen: NDArray[np.bool_] = self.sums >= least
        return chosen

    def items_in(self, chosen: NDArray[np.bool_]) -> ListedItems:
        """The items in buckets, (B, M) bool, to which the lists add something.

        The parts are the same for any choice of buckets and in any batch: entries are added in their order in float64.
        """
        entries = chosen.reshape(-1).take(self._places).nonzero()[0]
        keys = (self._places.take(entries) >> self._bits) * self._items
        keys += self._near.take(entries)
        # The place of an entry in the lower bits keeps the order of entries with equal keys, and so that of the sums.
        bits = len(keys).bit_length()
        keys <<= bits
        keys |= np.arange(len(keys))
        keys.sort()
        values = self._values.take(entries.take(keys & ((1 << bits) - 1)))
        keys >>= bits
        first = np.empty(len(keys), dtype=np.bool_)
        first[:1] = True
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        starts = first.nonzero()[0]
        parts = np.add.reduceat(values, starts).astype(np.float32) if len(starts) else np.zeros(0, np.float32)
        keys = keys.take(starts)
        numbers, rows = np.divmod(keys, self._items)
        return ListedItems(keys, numbers, rows, parts)
