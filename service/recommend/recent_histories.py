"""RecentHistories: the newest histories that were asked with, on which a new bundle is compared with the active one."""

from collections import OrderedDict
from collections.abc import Sequence

_LONGEST = 50

History = tuple[str, ...]


class RecentHistories:
    """The newest different histories that were asked with, as item ids without a user; in memory only.

    Args:
        cap: histories kept.

    Attributes:
        generation: how often all were forgotten; to be noted before a history is read.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._kept: OrderedDict[History, None] = OrderedDict()
        self.generation = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, items: Sequence[str], generation: int) -> None:
        """Keep a history; it is dropped if all were forgotten since it was read, as its user may have been erased.

        Args:
            items: oldest first; of more than fifty the newest fifty are kept.
            generation: :attr:`generation` before the history was read.
        """
        if not items or generation != self.generation:
            return
        history = tuple(items[-_LONGEST:])
        self._kept[history] = None
        self._kept.move_to_end(history)
        if len(self._kept) > self._cap:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget all of them: whose they were is not known, so one user can only be forgotten with all."""
        self.generation += 1
        self._kept.clear()

    def newest(self) -> list[History]:
        """All that are kept, newest first."""
        return list(reversed(self._kept))
