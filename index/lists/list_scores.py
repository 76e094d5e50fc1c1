"""ListScores: what item-to-item lists add to the scores of items for histories, exactly.

The part of list l for item i is ``w_l · Σ_h recency(h) · sim_l(h, i)`` over the newest items h of a history. Products
and sums are made in float64 in an order that depends on the history alone (newest item first), then rounded to float32,
so the result is the same in any batch and for any set of candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError
from index.lists.item_lists import ItemLists


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


@dataclass(frozen=True, eq=False)
class _Entries:
    """Entries of the lists of a batch: one for each list, item of a history, and neighbour of it.

    Attributes:
        keys: history · n + row of the neighbour, (e,) int64, one array per list.
        values: recency · similarity · weight of the list, (e,) float64, one array per list.
    """

    keys: list[NDArray[np.int64]]
    values: list[NDArray[np.float64]]


class ListScores:
    """Scores by lists; immutable, any number of threads may use it.

    Args:
        lists: of the catalogue; those of weight 0 are left out.

    Attributes:
        lists: those that are left.
        history: newest items of a history that count.
    """

    def __init__(self, lists: ItemLists) -> None:
        self.lists = lists.used()
        self.history = len(lists.weights.recency)
        self._recency = lists.weights.recency.astype(np.float64)
        self._weights = [lists.weights.weights[name] for name in self.lists.names]

    def candidates(self, histories: Sequence[NDArray[np.int64]]) -> ListParts:
        """Every item in the lists of the newest items of each history.

        The items of the history itself may be among them: leaving them out is the caller's choice.

        Args:
            histories: B arrays of item rows, oldest first; an empty one has no candidates.

        Raises:
            SearchError: a row outside the catalogue.
        """
        entries = self._entries(histories)
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
        return ListParts(offsets, joined, self._summed(self._entries(histories), keys))

    def dense(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32: the sum of the parts of all lists for every item of the catalogue."""
        found = self.candidates(histories)
        scores = np.zeros((len(histories), self.lists.items), dtype=np.float32)
        users = np.repeat(np.arange(len(histories)), np.diff(found.offsets))
        scores[users, found.rows] = summed(found.parts)
        return scores

    def scales(self, slot_weights: Mapping[str, float]) -> NDArray[np.float32]:
        """(lists,) float32: the weight that a request gives to the slot of each list, 1 where it names none."""
        return np.array([slot_weights.get(slot, 1.0) for slot in self.lists.slots], dtype=np.float32)

    def _entries(self, histories: Sequence[NDArray[np.int64]]) -> _Entries:
        newest = [history[: -self.history - 1 : -1] for history in histories]
        lengths = [len(some) for some in newest]
        rows = np.concatenate([np.zeros(0, np.int64), *newest])
        self._check_rows(rows)
        ages = np.concatenate([np.zeros(0, np.int64), *(np.arange(length) for length in lengths)])
        base, recency = np.repeat(np.arange(len(newest)), lengths) * self.lists.items, self._recency[ages]
        keys, values = [], []
        for item_list, weight in zip(self.lists.lists, self._weights, strict=True):
            starts = np.asarray(item_list.offsets[rows])
            sizes = np.asarray(item_list.offsets[rows + 1]) - starts
            ends = np.cumsum(sizes)
            places = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
            keys.append(np.repeat(base, sizes) + item_list.rows[places])
            values.append(np.repeat(recency * weight, sizes) * item_list.similarities[places])
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

    def _check_rows(self, rows: NDArray[np.int64]) -> None:
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self.lists.items):
            raise SearchError(f"item rows must lie in 0 … {self.lists.items - 1}, got {rows.min()} … {rows.max()}")


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
