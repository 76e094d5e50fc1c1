"""HiddenItems: which items may not be answered now, as a bitmap for each bundle in use."""

from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from index.allowed import Allowed
from index.bundle import Bundle


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The hidden items of one moment, for work in another thread.

    Attributes:
        ids: the hidden item ids.
        version: grows with every change.
    """

    ids: frozenset[str]
    version: int


class HiddenItems:
    """The hidden item ids, and for each bundle in use the rows that they leave.

    A bitmap is worked out whole once a bundle; a change afterwards copies it and turns single rows, so that it costs
    little however many items are hidden, and an answer in progress keeps the one it began with. To be changed in the
    event loop only.
    """

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._ids = set(ids)
        self._version = 0
        self._available: WeakKeyDictionary[Bundle, Allowed] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._ids

    @property
    def ids(self) -> AbstractSet[str]:
        """The hidden item ids, those that no bundle has too; not to be kept."""
        return self._ids

    def available(self, bundle: Bundle) -> Allowed | None:
        """The rows of a bundle that may be answered; None where nothing is hidden."""
        if not self._ids:
            return None
        known = self._available.get(bundle)
        if known is None:
            known = self._available[bundle] = available_rows(bundle, self._ids)
        return known

    def change(self, hidden: Collection[str], shown: Collection[str]) -> None:
        """Hide some items, then show others again."""
        if not hidden and not shown:
            return
        self._version += 1
        self._ids.update(hidden)
        self._ids.difference_update(shown)
        for bundle, available in list(self._available.items()):
            self._available[bundle] = _turned(bundle, available.mask, hidden, shown)

    def snapshot(self) -> Snapshot:
        """The hidden items now."""
        return Snapshot(frozenset(self._ids), self._version)

    def adopt(self, bundle: Bundle, available: Allowed, snapshot: Snapshot) -> None:
        """Take a bitmap that was worked out elsewhere, so that the first request need not.

        Args:
            bundle: whose rows they are.
            available: from :func:`available_rows` on ``snapshot.ids``.
            snapshot: from :meth:`snapshot`; what changed since is caught up with.
        """
        if snapshot.version != self._version:
            available = _turned(bundle, available.mask, self._ids - snapshot.ids, snapshot.ids - self._ids)
        self._available[bundle] = available


def available_rows(bundle: Bundle, hidden: Iterable[str]) -> Allowed:
    """The rows of a bundle that are not hidden; ids that it does not have do nothing."""
    return _turned(bundle, np.ones(len(bundle), dtype=np.bool_), hidden, ())


def _turned(bundle: Bundle, available: NDArray[np.bool_], hidden: Iterable[str], shown: Iterable[str]) -> Allowed:
    """A changed copy, counted once for all searches to come."""
    changed = available.copy()
    for ids, state in ((hidden, False), (shown, True)):
        rows, _ = bundle.ids.rows(list(ids))
        changed[rows] = state
    return Allowed.of(changed, bundle.indexed)
