"""Bounds the number of connections and how long each may keep the service waiting.

One sweep checks all connections now and then, instead of a timer each, so that a request costs little.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic, perf_counter
from typing import Protocol


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of one connection and of all of them.

    Attributes:
        connections: at once.
        spare: beyond those, for health checks and refusals.
        request_s: seconds in which a request must arrive whole, and its answer be taken.
        crowded_s: seconds that a connection may keep the service waiting while another one needs its slot.
        linger_s: seconds in which a refusal must be read.
        rest_s: seconds in which the rest of a request must arrive that is answered already.
        rest_bytes: bytes of such a rest, or behind a refusal that ends the connection, that are read and dropped.
        head_bytes: bytes of address and headers.
        pipelined: requests sent before the response to an earlier one.
    """

    connections: int
    request_s: float
    spare: int = 128
    crowded_s: float = 1.0
    linger_s: float = 1.0
    rest_s: float = 5.0
    rest_bytes: int = 4 << 20
    head_bytes: int = 65_536
    pipelined: int = 16


class Connection(Protocol):
    """A connection that the sweep can check."""

    def check(self, now: float, patience_s: float) -> None:
        """End the connection if it has kept the service waiting for too long.

        Args:
            now: seconds, monotonic.
            patience_s: seconds that it may keep the service waiting, where that is less than its own limits.
        """
        ...


class Connections:
    """All connections of the server.

    Args:
        limits: bounds.
        retry_after_s: seconds, sent with every refusal for lack of a slot.
        on_open: called with the number of connections when it changes.
        on_drop: called with the reason why a connection was ended: crowded, late, stalled, head, pipeline, body,
            malformed.
        on_turned_away: called with the requests that came when too many were in progress, after their refusals were
            written: of each the method, and the seconds from its first bytes to the last of the refusal.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        *,
        retry_after_s: int,
        on_open: Callable[[int], None] = lambda _count: None,
        on_drop: Callable[[str], None] = lambda _reason: None,
        on_turned_away: Callable[[list[tuple[str, float]]], None] = lambda _refused: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.limits = limits
        self.retry_after_s = retry_after_s
        self.on_drop = on_drop
        self.clock = clock
        self._on_open = on_open
        self._on_turned_away = on_turned_away
        self._turned_away: list[tuple[str, float]] = []
        self._open: set[Connection] = set()
        self._freed_at = -inf
        self._swept_at = -inf
        self._every_s = min(1.0, limits.request_s / 4.0)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def free_slots(self) -> int:
        """How many more connections there may be; below 0 within the spare ones."""
        return self.limits.connections - len(self._open)

    def add(self, connection: Connection) -> None:
        """Add a connection; where no slot is free, end those that keep the service waiting."""
        now = self.clock()
        if self.free_slots <= 0 and now - self._freed_at >= self.limits.crowded_s / 10.0:
            self._freed_at = now
            self._check(now, self.limits.crowded_s)
        self._open.add(connection)
        self._on_open(len(self._open))

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._open.discard(connection)
        self._on_open(len(self._open))

    def turned_away(self, method: str, began: float) -> None:
        """Count a request that is refused because too many are in progress, once the refusal is written.

        The event loop writes at the end of its turn, and runs what was scheduled meanwhile in the next one.

        Args:
            method: of the request.
            began: `perf_counter` seconds when its first bytes were received.
        """
        if not self._turned_away:
            asyncio.get_running_loop().call_soon(self._count_turned_away)
        self._turned_away.append((method, began))

    def _count_turned_away(self) -> None:
        refused, self._turned_away = self._turned_away, []
        now = perf_counter()
        self._on_turned_away([(method, now - began) for method, began in refused])

    def sweep(self) -> None:
        """End the connections that kept the service waiting for too long; most calls return at once."""
        now = self.clock()
        if now - self._swept_at >= self._every_s:
            self._swept_at = now
            self._check(now, inf)

    def _check(self, now: float, patience_s: float) -> None:
        for connection in tuple(self._open):
            connection.check(now, patience_s)
