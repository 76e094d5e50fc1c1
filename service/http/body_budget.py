"""Bounds the memory of all request bodies that are still arriving, and the number of bodies that are discarded."""

from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import BodiesFull

_DISCARDING = 32


class BodyBudget:
    """Memory for the bodies that do not arrive in one piece; most do, and are not counted.

    Args:
        limit: bytes of all of them.
        largest: bytes of one body.
        discarding: bodies over the limit that are read and dropped at the same time; further ones are refused unread.
    """

    def __init__(self, limit: int, *, largest: int, discarding: int = _DISCARDING) -> None:
        self.largest = largest
        self._limit = limit
        self._free_bytes = limit
        self._free_discards = discarding

    @contextmanager
    def holding(self) -> Iterator["BodyShare"]:
        """A share of the bytes, given back at the end."""
        share = BodyShare(self)
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
        """Take bytes out of the budget.

        Raises:
            BodiesFull: too few are left.
        """
        if size > self._free_bytes:
            raise BodiesFull(f"bodies of {self._limit} bytes in all are waited for already; try again later")
        self._free_bytes -= size


class BodyShare:
    """The part of the budget that one body has taken.

    Args:
        budget: of all bodies.

    Attributes:
        bytes: taken so far.
    """

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.bytes = 0

    def grow(self, size: int) -> None:
        """Take more.

        Raises:
            BodiesFull: too few bytes are left.
        """
        self._budget.take(size)
        self.bytes += size
