"""Keeps the ids of the hidden items, and for each bundle in use a bitmap of the rows that may be answered."""

import asyncio
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.search.row_mask import RowMask

_MOST_IN_LOOP = 256  # ids that are found one by one in the event loop, about 2 ms in a million rows
_CHUNK = 1000


@dataclass(frozen=True, slots=True, eq=False)
class HiddenSnapshot:
    """The hidden items at one moment, for work in another thread.

    Attributes:
        ids: the hidden item ids.
        version: grows with every change.
    """

    ids: AbstractSet[str]
    version: int


class HiddenItems:
    """The hidden item ids, and for each bundle in use the rows that are not hidden.

    A small change copies the bitmaps and sets single rows in the event loop. A large one is prepared in a thread and
    takes effect for all bundles in one step. To be changed by one caller at a time, in the event loop.
    """

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._ids = set(ids)
        self._version = 0
        self._available: WeakKeyDictionary[Bundle, RowMask] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._ids

    @property
    def ids(self) -> AbstractSet[str]:
        """The hidden item ids, also those that no bundle has; read it at once, as changes replace it."""
        return self._ids

    def available(self, bundle: Bundle) -> RowMask | None:
        """The rows of a bundle that may be answered; None if nothing is hidden."""
        if not self._ids:
            return None
        mask = self._available.get(bundle)
        if mask is None:
            mask = self._available[bundle] = available_rows(bundle, self._ids)
        return mask

    async def change(self, hidden: Collection[str], shown: Collection[str]) -> None:
        """Hide some items, then show others again."""
        if not hidden and not shown:
            return
        if len(hidden) + len(shown) > _MOST_IN_LOOP:
            await self._replace_all(await asyncio.to_thread(_changed, self._ids.copy(), hidden, shown))
            return
        self._version += 1
        self._ids.update(hidden)
        self._ids.difference_update(shown)
        for bundle, available in list(self._available.items()):
            self._available[bundle] = _with_rows_set(bundle, available.mask, hidden, shown)

    async def replace(self, ids: Collection[str]) -> None:
        """Hide exactly these items."""
        if len(ids) + len(self._ids) > _MOST_IN_LOOP:
            await self._replace_all(await asyncio.to_thread(_changed, set(), ids, ()))
            return
        wanted = set(ids)
        await self.change(wanted - self._ids, self._ids - wanted)

    def snapshot(self) -> HiddenSnapshot:
        """The hidden items now."""
        return HiddenSnapshot(self._ids.copy(), self._version)

    async def adopt(self, bundle: Bundle, available: RowMask, snapshot: HiddenSnapshot) -> None:
        """Take a bitmap that another thread computed, so that the first request need not compute it.

        Args:
            bundle: whose rows they are.
            available: from :func:`available_rows` on ``snapshot.ids``.
            snapshot: from :meth:`snapshot`; if the items changed since, the bitmap is computed again.
        """
        while snapshot.version != self._version:
            snapshot = self.snapshot()
            available = await asyncio.to_thread(available_rows, bundle, snapshot.ids)
        self._available[bundle] = available

    async def _replace_all(self, ids: set[str]) -> None:
        """Compute the bitmaps of all bundles in use in a thread, then replace them and the ids in one step."""
        ready: dict[Bundle, RowMask] = {}
        while waiting := [
            bundle for bundle in self._available if bundle not in ready
        ]:  # a bundle may be added meanwhile
            for bundle in waiting:
                ready[bundle] = await asyncio.to_thread(available_rows, bundle, ids)
        self._version += 1
        self._ids = ids
        for bundle, available in ready.items():
            self._available[bundle] = available


def available_rows(bundle: Bundle, hidden: Collection[str]) -> RowMask:
    """The rows of a bundle that are not hidden; ids that it does not have are ignored."""
    if len(hidden) > _MOST_IN_LOOP:
        return RowMask.of(~bundle.ids.among(hidden), bundle.indexed)
    return _with_rows_set(bundle, np.ones(len(bundle), dtype=np.bool_), hidden, ())


def _with_rows_set(
    bundle: Bundle, available: NDArray[np.bool_], hidden: Iterable[str], shown: Iterable[str]
) -> RowMask:
    """A changed copy, with its rows counted once for all later searches."""
    changed = available.copy()
    for ids, state in ((hidden, False), (shown, True)):
        rows, _ = bundle.ids.rows(list(ids))
        changed[rows] = state
    return RowMask.of(changed, bundle.indexed)


def _changed(ids: set[str], hidden: Iterable[str], shown: Iterable[str]) -> set[str]:
    """The ids after a change, made in place; in chunks, as each call holds the interpreter's lock."""
    for chunk in in_chunks(hidden):
        ids.update(chunk)
    for chunk in in_chunks(shown):
        ids.difference_update(chunk)
    return ids


def in_chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """The ids, a thousand at a time."""
    rest = iter(ids)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
