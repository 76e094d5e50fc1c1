"""ListEntries: the entries of the lists of a batch of queries, with an upper bound of what they add to each item.

Most items of the lists add too little to be among the best. So the entries of a query are summed into buckets, one for
all items whose rows have the same low bits. No entry is below 0, so the sum of a bucket bounds the part of each of its
items. Only the entries of chosen buckets are sorted by item and summed exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.lists.item_lists import ItemList

_BUCKETS_PER_ENTRY = 1  # rounded up to a power of two; few different items share a bucket
_FOLDS = 4


@dataclass(frozen=True, slots=True, eq=False)
class ListedItems:
    """Items of a batch of queries, with what all lists together add to their scores.

    Attributes:
        numbers: (c,) int64, the query, ascending.
        rows: (c,) int64 item rows, ascending and different within a query.
        parts: (c,) float32, at least 0.
        found: (c,) bool, whether the item was found by slots.
        owners: (e,) int64, ascending: the item of each entry of these items, and of each item that was found.
        values: (e,) float64, what each entry adds; 0 for what was found, which comes before its entries.
        order: (e,) int64, what each is: below f one of the f items that were found, else f + number of its entry.
        entries: (e − f,) int64, the place of each entry of a chosen bucket among those of all lists, ascending.
    """

    numbers: NDArray[np.int64]
    rows: NDArray[np.int64]
    parts: NDArray[np.float32]
    found: NDArray[np.bool_]
    owners: NDArray[np.int64]
    values: NDArray[np.float64]
    order: NDArray[np.int64]
    entries: NDArray[np.int64]

    def of_lists(self, places: NDArray[np.int64], lists: int, size: int) -> NDArray[np.float32]:
        """What each list adds to some of the items.

        Args:
            places: (m,) int64 of the items, different.
            lists: number of lists.
            size: entries of each list in the batch.

        Returns:
            (m, lists) float32.
        """
        lines = np.full(len(self.rows), -1, dtype=np.int64)
        lines[places] = np.arange(len(places))
        of_entries = lines.take(self.owners)
        found = len(self.order) - len(self.entries)
        kept = (of_entries >= 0).nonzero()[0]
        keys = of_entries.take(kept) * lists
        if len(self.entries):  # what was found adds 0, to any list
            keys += self.entries.take(self.order.take(kept) - found, mode="clip") // size
        # bincount adds in the order of its input: newest item of the history first.
        sums = np.bincount(keys, self.values.take(kept), len(places) * lists)
        return sums.astype(np.float32).reshape(-1, lists)

    def in_lines(
        self, kept: NDArray[np.bool_], queries: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_] | None]:
        """One line of equal length for each query, filled up with its last item.

        Args:
            kept: (c,) bool, which items, at least one.
            queries: B.

        Returns:
            (B, m) rows, parts and found as above, and what is filled up, (B, m) bool; None: nothing.
        """
        places, filled = kept.nonzero()[0], None
        if queries > 1:
            sizes = np.bincount(self.numbers.take(places), minlength=queries)[:, None]
            columns = np.arange(sizes.max())
            filled = columns >= sizes
            places = places.take(np.minimum(columns, sizes - 1) + (np.cumsum(sizes)[:, None] - sizes), mode="clip")
        else:
            places = places[None]
        return self.rows.take(places), self.parts.take(places), self.found.take(places), filled


class ListReader:
    """Reads the entries of many items of all lists at once, as many as the item with the most has.

    Args:
        lists: of one catalogue.
    """

    def __init__(self, lists: Sequence[ItemList]) -> None:
        self._lists = lists
        self._width = max((own.longest for own in lists), default=0)
        self._full = all(len(own.rows) == len(own) * self._width for own in lists) and self._width > 0
        self._columns = np.arange(self._width)
        # Where every item has as many entries, they are lines of a table.
        shape = (-1, self._width) if self._full else (-1,)
        self._tables = [(own.rows.reshape(shape), own.similarities.reshape(shape)) for own in lists]

    def read(self, items: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
        """(lists, h, w) neighbours of (h,) items, and their similarities; an item without w entries has some of 0."""
        shape = (len(self._lists), len(items), self._width)
        near, similarities = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.float16)
        if self._full:
            for (rows, values), own, weights in zip(self._tables, near, similarities, strict=True):
                rows.take(items, 0, own, "clip")
                values.take(items, 0, weights, "clip")
            return near, similarities
        starts, ends = np.empty((2, *shape[:2]), dtype=np.int64)
        following = items + 1
        for item_list, first, last in zip(self._lists, starts, ends, strict=True):
            item_list.offsets.take(items, 0, first, "clip")
            item_list.offsets.take(following, 0, last, "clip")
        places = starts[:, :, None] + self._columns
        for (rows, values), own, weights, entries in zip(self._tables, near, similarities, places, strict=True):
            if len(rows):
                rows.take(entries, 0, own, "clip")
                values.take(entries, 0, weights, "clip")
            else:
                own.fill(0)
        bits = similarities.view(np.int16)
        np.multiply(bits, places < ends[:, :, None], bits)
        return near, similarities


class ListEntries:
    """The entries of a batch of queries, in the order list, query, newest item of the history, most similar item.

    Args:
        items: number of items of the catalogue n.
        lengths: items of each history, B.
        near: (lists, h, w) int32 neighbours of each item.
        values: (lists, h, w) float64, at least 0, what each entry adds.
        found: (B, c) int64 rows that were found by slots, different, padded with −1 at the end.

    Attributes:
        sums: (B, M) float64, at least what all lists add to any item of a bucket, but for the rounding of float64; M is
            a power of two.
        of_a_list: entries of each list, those of all queries.
    """

    def __init__(
        self,
        items: int,
        lengths: Sequence[int],
        near: NDArray[np.int32],
        values: NDArray[np.float64],
        found: NDArray[np.int64],
    ) -> None:
        self._items = items
        self._queries = len(lengths)
        self.of_a_list = near.shape[1] * near.shape[2]
        most = max(lengths, default=0) * near.shape[0] * near.shape[2]
        self._bits = max(_BUCKETS_PER_ENTRY * most - 1, 0).bit_length()
        self.buckets = 1 << self._bits
        low_bits = np.array(self.buckets - 1, dtype=np.int32)
        self._near, self._values = near.reshape(-1), values.reshape(-1)
        places = np.bitwise_and(near, low_bits).astype(np.int64)
        if self._queries == 1:
            self._rows = found[0] if found.shape[1] and found[0, -1] >= 0 else found[found >= 0]
            self._found = np.bitwise_and(self._rows, low_bits)
        else:
            numbers = np.arange(self._queries)[:, None]
            self._rows, self._found = found + numbers * items, (found & low_bits) + (numbers << self._bits)
            if found.size and found[:, -1].min() >= 0:
                self._rows, self._found = self._rows.reshape(-1), self._found.reshape(-1)
            else:
                self._rows, self._found = self._rows[found >= 0], self._found[found >= 0]
            places += np.repeat(np.arange(self._queries) << self._bits, lengths)[:, None]
        self._places = places.reshape(-1)
        sums = np.bincount(self._places, self._values, self._queries * self.buckets)
        self.sums: NDArray[np.float64] = sums.astype(np.float64, copy=False).reshape(-1, self.buckets)

    def strongest(self, count: int) -> NDArray[np.float64]:
        """(B,) float64: the least sum of the strongest buckets of each query, about ``count`` and not fewer."""
        if self.buckets <= count:
            return np.zeros(len(self.sums))
        folds: NDArray[np.float64]
        if self.buckets >= 2 * _FOLDS * count:  # the largest of several buckets stands for them
            folds = np.maximum.reduce(self.sums.reshape(-1, _FOLDS, self.buckets // _FOLDS), axis=1)
        else:
            folds = self.sums.copy()
        folds.partition(-count, axis=1)
        least: NDArray[np.float64] = folds[:, -count]
        return least

    def items_in(self, least: NDArray[np.float64]) -> ListedItems:
        """All that was found by slots, and what lies in the buckets whose sum is at least ``least``, (B,) float64.

        The parts are the same for any choice of buckets and in any batch: entries are added in their order in float64.
        """
        chosen = (self.sums >= least[:, None]).reshape(-1)
        chosen[self._found] = True  # so that the parts of these items are whole
        entries = chosen.take(self._places).nonzero()[0]
        added = len(self._rows)
        keys = np.concatenate((self._rows, self._near.take(entries)))
        if self._queries > 1:
            keys[added:] += (self._places.take(entries) >> self._bits) * self._items
        # The place of an entry in the lower bits keeps the order of entries with equal keys, and so that of the sums.
        bits = len(keys).bit_length()
        np.left_shift(keys, bits, keys)
        np.bitwise_or(keys, np.arange(len(keys)), keys)
        keys.sort()
        order = keys & ((1 << bits) - 1)
        np.right_shift(keys, bits, keys)
        first = np.empty(len(keys), dtype=np.bool_)
        first[:1] = True
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        starts = first.nonzero()[0]
        owners = first.cumsum()
        owners -= 1
        values = np.concatenate((np.zeros(added), self._values.take(entries))).take(order)
        parts = np.bincount(owners, values, len(starts)).astype(np.float32)  # adds in the order of its input
        keys = keys.take(starts)
        found = order.take(starts) < added
        if self._queries == 1:
            numbers = np.zeros(len(keys), dtype=np.int64)
        else:
            numbers = keys // self._items
            keys -= numbers * self._items
        return ListedItems(numbers, keys, parts, found, owners, values, order, entries)
