"""BodyBudget: how much of all the bodies that are still arriving may be in memory, and how many are thrown away."""

from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import BodiesFull

_DISCARDING = 32


class BodyBudget:
    """What the bodies that did not come in one piece may take together; most do, and are not counted.

    Args:
        limit: bytes of all of them.
        largest: bytes of one body.
        discarding: bodies over the limit that are read and dropped at the same time; the others are refused unread.
    """

    def __init__(self, limit: int, *, largest: int, discarding: int = _DISCARDING) -> None:
        self.largest = largest
        self._limit = limit
        self._free_bytes = limit
        self._free_discards = discarding

    @contextmanager
    def holding(self) -> Iterator["Share"]:
        """A share of the bytes, given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self._free_bytes += share.bytes

    @contextmanager
    def discarding(self) -> Iterator[bool]:
        """Whether one more body may be read and dropped."""
        allowed = self._free_discards > 0
        self._free_discards -= allowed
        try:
            yield allowed
        finally:
            self._free_discards += allowed

    def take(self, size: int) -> None:
        """Take bytes out.

        Raises:
            BodiesFull: there are not so many left.
        """
        if size > self._free_bytes:
            raise BodiesFull(f"bodies of {self._limit} bytes in all are waited for already; try again later")
        self._free_bytes -= size


class Share:
    """What one body has of the budget.

    Args:
        budget: of all of them.

    Attributes:
        bytes: taken so far.
    """

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.bytes = 0

    def grow(self, size: int) -> None:
        """Take more.

        Raises:
            BodiesFull: there is not so much left.
        """
        self._budget.take(size)
        self.bytes += size
