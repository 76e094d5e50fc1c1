"""ListScores: what item-to-item lists add to the scores of items for histories, exactly.

The part of list l for item i is ``w_l · Σ_h recency(h) · sim_l(h, i)`` over the newest items h of a history. Products
and sums are made in float64 in an order that depends on the history alone (newest item first), then rounded to float32,
so the result is the same in any batch and for any set of candidates. A query may give weights to the items of its
history and to the slots; both multiply.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError
from index.items.slots import SlotLayout
from index.lists.item_lists import ItemLists
from index.lists.list_entries import ListEntries, ListReader
from index.lists.list_query import ListQuery

_BUCKETS_PER_ITEM = 16  # so that few entries of other items are looked at
_MANY_ENTRIES = 2048
_UNSIGNED = {4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, eq=False)
class ListParts:
    """Items of a batch of histories with what each list adds to their scores.

    Attributes:
        offsets: (B + 1,) int64; history b owns ``offsets[b] : offsets[b + 1]`` of the others.
        rows: (c,) int64 item rows, ascending and different within a history.
        parts: (c, lists) float32, the weight of the list included.
    """

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    parts: NDArray[np.float32]

    def of(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and parts of one history; views."""
        part = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        return self.rows[part], self.parts[part]


@dataclass(frozen=True, slots=True, eq=False)
class _Histories:
    """The items of a batch of histories, newest first.

    Attributes:
        rows: (h,) int64 of all histories.
        lengths: items of each history.
        factors: (lists, h) float64, what the similarities of each item's lists are multiplied with.
    """

    rows: NDArray[np.int64]
    lengths: list[int]
    factors: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Entries:
    """Entries of the lists of a batch: one for each list, item of a history, and neighbour of it.

    Attributes:
        keys: history · n + row of the neighbour, (e,) int64, one array per list.
        values: the part that the entry adds, (e,) float64, one array per list.
    """

    keys: list[NDArray[np.int64]]
    values: list[NDArray[np.float64]]


class ListScores:
    """Scores by lists; immutable, any number of threads may use it.

    Args:
        lists: of the catalogue; those of weight 0 are left out.
        layout: the slots, in the order of a query's slot weights; None where no query has any.

    Attributes:
        lists: those that are left.
        history: newest items of a history that count.
        slot_positions: for each list the position of its slot in the layout; all different.

    Raises:
        ValueError: the layout lacks the slot of a list.
    """

    def __init__(self, lists: ItemLists, layout: SlotLayout | None = None) -> None:
        self.lists = lists.used()
        self.history = len(lists.weights.recency)
        self._recency = lists.weights.recency.astype(np.float64)
        self._weights = np.array([lists.weights.weights[name] for name in self.lists.names])[:, None]
        self._plain_factors = self._weights * self._recency
        self._reader = ListReader(self.lists.lists)
        self._layout = layout
        self.slot_positions = [] if layout is None else [layout.names.index(slot) for slot in self.lists.slots]

    def candidates(self, histories: Sequence[NDArray[np.int64]]) -> ListParts:
        """Every item in the lists of the newest items of each history.

        The items of the history itself may be among them: leaving them out is the caller's choice.

        Args:
            histories: B arrays of item rows, oldest first; an empty one has no candidates.

        Raises:
            SearchError: a row outside the catalogue.
        """
        entries = self._entries(self._plain(histories))
        keys = np.unique(np.concatenate([np.zeros(0, np.int64), *entries.keys]))
        items = max(self.lists.items, 1)
        offsets = np.searchsorted(keys, np.arange(len(histories) + 1) * items).astype(np.int64)
        return ListParts(offsets, keys % items, self._summed(entries, keys))

    def parts(self, histories: Sequence[NDArray[np.int64]], rows: Sequence[NDArray[np.int64]]) -> ListParts:
        """What the lists add for given items, 0 for an item in none of the lists of its history.

        Args:
            histories: B arrays of item rows, oldest first.
            rows: for each history the items, ascending and different.

        Raises:
            SearchError: a row outside the catalogue, items that do not ascend, or not one array for each history.
        """
        if len(rows) != len(histories):
            raise SearchError(f"needs items for each of {len(histories)} histories, got {len(rows)}")
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(some) for some in rows], out=offsets[1:])
        joined = np.concatenate([np.zeros(0, np.int64), *rows])
        self._check_rows(joined)
        keys = np.repeat(np.arange(len(rows)), np.diff(offsets)) * self.lists.items + joined
        if (keys[1:] <= keys[:-1]).any():
            raise SearchError("the items of a history must ascend and differ")
        return ListParts(offsets, joined, self._summed(self._entries(self._plain(histories)), keys))

    def dense(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32: the sum of the parts of all lists for every item of the catalogue."""
        entries, shape = self._entries(self._plain(histories)), (len(histories), self.lists.items)
        scores = np.zeros(shape, dtype=np.float32)
        for keys, values in zip(entries.keys, entries.values, strict=True):
            part = np.bincount(keys, weights=values, minlength=scores.size)
            scores += part.astype(np.float32).reshape(shape)
        return scores

    def scales(self, slot_weights: Mapping[str, float]) -> NDArray[np.float32]:
        """(lists,) float32: the weight that a request gives to the slot of each list, 1 where it names none."""
        return np.array([slot_weights.get(slot, 1.0) for slot in self.lists.slots], dtype=np.float32)

    def entries(self, queries: Sequence[ListQuery | None], found: NDArray[np.int64]) -> ListEntries:
        """Every entry of the lists of each query.

        Args:
            queries: B histories; None has no entries.
            found: (B, c) int64 rows that were found by slots, different, padded with −1 at the end.

        Raises:
            SearchError: a row outside the catalogue, in a query or in a list.
        """
        histories = self._weighed(queries)
        near, similarities = self._near(histories.rows)
        values = _products(similarities, histories.factors)
        return ListEntries(self.lists.items, histories.lengths, near, values, found)

    def _near(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
        """(lists, h, w) neighbours of each of (h,) items, and their similarities, 0 beside the entries of a list."""
        self._check_rows(rows)
        near, similarities = self._reader.read(rows)
        self._check_rows(near)
        return near, similarities

    def contributions(self, queries: Sequence[ListQuery | None], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What each list adds to the score of each item.

        Args:
            queries: B histories; None adds nothing.
            rows: (B, k) int64 items, −1 = none.

        Returns:
            (B, k, lists) float32; 0 where the row is −1.

        Raises:
            SearchError: a row outside the catalogue.
        """
        if rows.ndim != 2 or rows.shape[0] != len(queries):
            raise SearchError(f"rows must be ({len(queries)}, k), got {rows.shape}")
        known = self._known(queries, rows)
        if known is not None:
            return known
        histories = self._weighed(queries)
        near, similarities = self._near(histories.rows)
        wanted = rows.reshape(-1)
        if len(queries) > 1:
            bases = np.arange(len(queries)) * self.lists.items
            wanted = np.where(rows < 0, -1, rows + bases[:, None]).reshape(-1)
        keys = wanted.copy()
        keys.sort()
        lists, _, width = near.shape
        if not near.size or not keys.size:
            return np.zeros((*rows.shape, lists), dtype=np.float32)
        # Few entries are of a wanted item: those with other low bits are left out first.
        low_bits = np.array((1 << (_BUCKETS_PER_ITEM * len(keys)).bit_length()) - 1, dtype=np.int32)
        marked = np.zeros(int(low_bits) + 1, dtype=np.bool_)
        marked[(rows & low_bits).reshape(-1)] = True
        entries = marked.take(near & low_bits).reshape(-1).nonzero()[0]
        owners = entries // width
        own = near.reshape(-1).take(entries).astype(np.int64)
        if len(queries) > 1:
            own += np.tile(np.repeat(bases, histories.lengths), lists).take(owners)
        places = keys.searchsorted(own)
        values = similarities.reshape(-1).take(entries).astype(np.float64)
        values *= histories.factors.reshape(-1).take(owners)
        values *= keys.take(places, mode="clip") == own
        places += owners // near.shape[1] * len(keys)
        # bincount adds in the order of its input: newest item of the history first.
        sums = np.bincount(places, values, lists * len(keys))[: lists * len(keys)].reshape(lists, -1)
        found: NDArray[np.float32] = sums.astype(np.float32).take(keys.searchsorted(wanted), axis=1)
        return np.ascontiguousarray(found.T).reshape(*rows.shape, lists)

    def _known(self, queries: Sequence[ListQuery | None], rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """The contributions, where searches kept those of all items; else None."""
        parts = np.empty((*rows.shape, len(self.lists.lists)), dtype=np.float32)
        for number, query in enumerate(queries):
            own = None if query is None or query.found is None else query.found.of(rows[number])
            if own is None:
                return None
            parts[number] = own
        return parts

    def similarities(self, history: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What each item of a history alone adds to the score of each item, whatever its age: Σ_l w_l · sim_l.

        Args:
            history: (h,) int64 item rows.
            rows: (k,) int64 item rows, different.

        Returns:
            (h, k) float32.

        Raises:
            SearchError: a row of the history outside the catalogue.
        """
        items, order = self.lists.items, np.argsort(rows)
        added = np.zeros((len(history), len(rows)), dtype=np.float64)
        if not added.size:
            return added.astype(np.float32)
        entries = self._entries(self._weighed([ListQuery(row, recency=False) for row in history[:, None]]))
        for keys, values in zip(entries.keys, entries.values, strict=True):
            owners, near = np.divmod(keys, items)
            places = np.minimum(np.searchsorted(rows, near, sorter=order), len(rows) - 1)
            known = rows[order[places]] == near
            added[owners[known], order[places[known]]] += values[known]  # an item has each neighbour once in a list
        return added.astype(np.float32)

    def _plain(self, histories: Sequence[NDArray[np.int64]]) -> _Histories:
        newest = [history[: -self.history - 1 : -1] for history in histories]
        lengths = [len(some) for some in newest]
        rows = np.concatenate([np.zeros(0, np.int64), *newest])
        ages = np.concatenate([np.zeros(0, np.int64), *(np.arange(length) for length in lengths)])
        recency = self._recency[ages]
        return _Histories(rows, lengths, self._weights * recency)

    def _weighed(self, queries: Sequence[ListQuery | None]) -> _Histories:
        """The histories of queries with all their weights."""
        plain = [query.rows[: -self.history - 1 : -1] for query in queries if query is not None and query.is_plain]
        if len(plain) == len(queries) == 1:
            return _Histories(plain[0], [len(plain[0])], self._plain_factors[:, : len(plain[0])])
        if len(plain) == len(queries) > 0:
            sizes = [len(newest) for newest in plain]
            factors = [self._plain_factors[:, :size] for size in sizes]
            return _Histories(np.concatenate(plain), sizes, np.concatenate(factors, axis=1))
        rows, own, lengths = [np.zeros(0, np.int64)], [np.zeros(0)], []
        for query in queries:
            if query is None:
                lengths.append(0)
                continue
            newest, weights = query.rows[::-1], None if query.weights is None else query.weights[::-1]
            if query.recency:
                newest = newest[: self.history]
                counted = self._recency[: len(newest)]
            else:
                counted = np.ones(len(newest))
            rows.append(newest)
            own.append(counted if weights is None else weights[: len(newest)] * counted)
            lengths.append(len(newest))
        return _Histories(np.concatenate(rows), lengths, self._scaled(queries, lengths) * np.concatenate(own))

    def _scaled(self, queries: Sequence[ListQuery | None], lengths: Sequence[int]) -> NDArray[np.float64]:
        """The weight of each list times that of its slot: (lists, items of all histories), or (lists, 1)."""
        if all(query is None or query.slot_weights is None for query in queries):
            return self._weights
        slots = 0 if self._layout is None else len(self._layout.slots)
        scaled = np.repeat(self._weights, len(queries), axis=1)
        for number, query in enumerate(queries):
            if query is None or query.slot_weights is None:
                continue
            if query.slot_weights.shape != (slots,):
                raise SearchError(f"slot weights must be ({slots},), got {query.slot_weights.shape}")
            scaled[:, number] *= query.slot_weights[self.slot_positions]
        return np.repeat(scaled, lengths, axis=1)

    def _entries(self, histories: _Histories) -> _Entries:
        rows, lengths = histories.rows, histories.lengths
        self._check_rows(rows)
        bases = np.repeat(np.arange(len(lengths)) * self.lists.items, lengths)
        keys, values = [], []
        for item_list, factors in zip(self.lists.lists, histories.factors, strict=True):
            starts = item_list.offsets[rows]
            sizes = item_list.offsets[rows + 1] - starts
            ends = np.cumsum(sizes)
            places = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
            near = item_list.rows[places]
            self._check_rows(near)
            keys.append(np.repeat(bases, sizes) + near)
            values.append(np.repeat(factors, sizes) * item_list.similarities[places])
        return _Entries(keys, values)

    def _summed(self, entries: _Entries, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """(c, lists) sums of the entries of each key; keys ascend, entries of other keys are left out."""
        parts = np.zeros((len(keys), len(self.lists.lists)), dtype=np.float32)
        if not len(keys):
            return parts
        for column, (own, values) in enumerate(zip(entries.keys, entries.values, strict=True)):
            places = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
            known = keys[places] == own
            # bincount adds in the order of its input: newest item of the history first.
            parts[:, column] = np.bincount(places[known], weights=values[known], minlength=len(keys))
        return parts

    def _check_rows(self, rows: NDArray[np.integer]) -> None:
        if not rows.size:
            return
        unsigned = rows.reshape(-1).view(_UNSIGNED[rows.dtype.itemsize])  # a negative row is larger than any other
        if int(unsigned[unsigned.argmax()]) >= self.lists.items:
            raise SearchError(f"item rows must lie in 0 … {self.lists.items - 1}, got {rows.min()} … {rows.max()}")


def _products(similarities: NDArray[np.float16], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(lists, h, w) float64: each similarity, at least 0, times the factor, (lists, h) float64, of its item."""
    if similarities.size < _MANY_ENTRIES:
        values = similarities.astype(np.float64)
        values *= factors[:, :, None]
        return values
    # As in `index.search.float16`, exact and several times as fast for many, though in more calls.
    bits = similarities.view(np.int16).astype(np.int32)
    bits <<= 13
    values = bits.view(np.float32).astype(np.float64)
    values *= (factors * 2.0**112)[:, :, None]
    return values


def summed(parts: NDArray[np.float32], scales: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Sum the parts of all lists, first list first.

    Args:
        parts: (c, lists) float32.
        scales: (lists,) float32 that each list's part is multiplied with; None for 1.

    Returns:
        (c,) float32.
    """
    total = np.zeros(len(parts), dtype=np.float32)
    for column in range(parts.shape[1]):
        total += parts[:, column] if scales is None else parts[:, column] * scales[column]
    return total
