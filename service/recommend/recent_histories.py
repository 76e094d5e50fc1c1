"""Keeps the newest histories of requests in memory, on which a new bundle is compared with the active one."""

from collections import OrderedDict
from collections.abc import Sequence

_MOST_ITEMS = 50

History = tuple[str, ...]


class RecentHistories:
    """The newest distinct histories of requests, as item ids without a user; in memory only.

    Args:
        cap: histories kept.

    Attributes:
        generation: how often all were removed; a caller notes it before it reads a history.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._histories: OrderedDict[History, None] = OrderedDict()
        self.generation = 0

    def __len__(self) -> int:
        return len(self._histories)

    def add(self, items: Sequence[str], generation: int) -> None:
        """Keep a history; it is dropped if all were removed since it was read, as its user may have been erased.

        Args:
            items: oldest first; only the newest fifty are kept.
            generation: :attr:`generation` before the history was read.
        """
        if not items or generation != self.generation:
            return
        history = tuple(items[-_MOST_ITEMS:])
        self._histories[history] = None
        self._histories.move_to_end(history)
        if len(self._histories) > self._cap:
            self._histories.popitem(last=False)

    def clear(self) -> None:
        """Remove all of them: their users are not known, so one user can only be forgotten together with all."""
        self.generation += 1
        self._histories.clear()

    def newest(self) -> list[History]:
        """All histories, newest first."""
        return list(reversed(self._histories))
