"""HiddenItems: which items may not be answered now, as a bitmap for each bundle in use."""

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

_FEW = 256  # ids that are looked up one by one, about 2 ms in a million; the event loop waits for as many
_PIECE = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The hidden items of one moment, for work in another thread.

    Attributes:
        ids: the hidden item ids.
        version: grows with every change.
    """

    ids: AbstractSet[str]
    version: int


class HiddenItems:
    """The hidden item ids, and for each bundle in use the rows that they leave.

    A small change copies the bitmaps and turns single rows in the event loop. A large one is made ready in a thread,
    and takes effect for all bundles in one step. To be changed by one caller at a time, in the event loop.
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
        """The hidden item ids, those that no bundle has too; not to be kept."""
        return self._ids

    def available(self, bundle: Bundle) -> RowMask | None:
        """The rows of a bundle that may be answered; None where nothing is hidden."""
        if not self._ids:
            return None
        known = self._available.get(bundle)
        if known is None:
            known = self._available[bundle] = available_rows(bundle, self._ids)
        return known

    async def change(self, hidden: Collection[str], shown: Collection[str]) -> None:
        """Hide some items, then show others again."""
        if not hidden and not shown:
            return
        if len(hidden) + len(shown) > _FEW:
            await self._settle(await asyncio.to_thread(_changed, self._ids.copy(), hidden, shown))
            return
        self._version += 1
        self._ids.update(hidden)
        self._ids.difference_update(shown)
        for bundle, available in list(self._available.items()):
            self._available[bundle] = _turned(bundle, available.mask, hidden, shown)

    async def replace(self, ids: Collection[str]) -> None:
        """Hide exactly these items."""
        if len(ids) + len(self._ids) > _FEW:
            await self._settle(await asyncio.to_thread(_changed, set(), ids, ()))
            return
        wanted = set(ids)
        await self.change(wanted - self._ids, self._ids - wanted)

    def snapshot(self) -> Snapshot:
        """The hidden items now."""
        return Snapshot(self._ids.copy(), self._version)

    async def adopt(self, bundle: Bundle, available: RowMask, snapshot: Snapshot) -> None:
        """Take a bitmap that was worked out elsewhere, so that the first request need not.

        Args:
            bundle: whose rows they are.
            available: from :func:`available_rows` on ``snapshot.ids``.
            snapshot: from :meth:`snapshot`; what changed since is caught up with.
        """
        while snapshot.version != self._version:
            snapshot = self.snapshot()
            available = await asyncio.to_thread(available_rows, bundle, snapshot.ids)
        self._available[bundle] = available

    async def _settle(self, ids: set[str]) -> None:
        """Make the bitmaps of all bundles in use ready in a thread, then let them and the ids hold in one step."""
        ready: dict[Bundle, RowMask] = {}
        while waiting := [bundle for bundle in self._available if bundle not in ready]:  # one may come meanwhile
            for bundle in waiting:
                ready[bundle] = await asyncio.to_thread(available_rows, bundle, ids)
        self._version += 1
        self._ids = ids
        for bundle, available in ready.items():
            self._available[bundle] = available


def available_rows(bundle: Bundle, hidden: Collection[str]) -> RowMask:
    """The rows of a bundle that are not hidden; ids that it does not have do nothing."""
    if len(hidden) > _FEW:
        return RowMask.of(~bundle.ids.among(hidden), bundle.indexed)
    return _turned(bundle, np.ones(len(bundle), dtype=np.bool_), hidden, ())


def _turned(bundle: Bundle, available: NDArray[np.bool_], hidden: Iterable[str], shown: Iterable[str]) -> RowMask:
    """A changed copy, counted once for all searches to come."""
    changed = available.copy()
    for ids, state in ((hidden, False), (shown, True)):
        rows, _ = bundle.ids.rows(list(ids))
        changed[rows] = state
    return RowMask.of(changed, bundle.indexed)


def _changed(ids: set[str], hidden: Iterable[str], shown: Iterable[str]) -> set[str]:
    """The ids after a change, worked on in place; in pieces, as each holds the interpreter's lock to its end."""
    for piece in in_pieces(hidden):
        ids.update(piece)
    for piece in in_pieces(shown):
        ids.difference_update(piece)
    return ids


def in_pieces(ids: Iterable[str]) -> Iterator[list[str]]:
    """The ids, a thousand at a time."""
    rest = iter(ids)
    while piece := list(islice(rest, _PIECE)):
        yield piece
