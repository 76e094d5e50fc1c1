"""Load: how much is in progress. Half of the bound makes answers cheap, all of it refuses requests."""


class Load:
    """Requests in progress, from the first byte of the head that was read to the answer. Of the event loop alone.

    Args:
        bound: most that may be in progress, at least 2.

    Attributes:
        bound: likewise.
        in_progress: requests now; the members of a batch count each.
    """

    __slots__ = ("_half", "bound", "in_progress")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.in_progress = 0
        self._half = bound // 2

    @property
    def is_full(self) -> bool:
        """Whether one more would be too many."""
        return self.in_progress >= self.bound

    @property
    def is_high(self) -> bool:
        """Whether more than half of what may be in progress is: time for cheap answers."""
        return self.in_progress > self._half
