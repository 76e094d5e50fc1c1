"""Keeps the token buckets of callers for all replicas, which exchange through a store what each has admitted.

No request waits for the store: a request is admitted by the buckets of this service, and several times a second they
are brought up to date. So the limit holds over time, and a caller that spreads its requests over n replicas gets at
most n bursts within one interval, which it then waits off. While the store does not answer, each replica limits alone.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Final, NamedTuple, Protocol

from service.access.buckets import MOST_CALLERS, Buckets, Caller
from service.errors import RatesUnavailable

INTERVAL_S: Final = 0.1
"""Seconds between two exchanges."""

_MOST_TOGETHER: Final = 256  # charges sent at once; the rest follows at once


class Charge(NamedTuple):
    """What a caller has used since the last exchange.

    Attributes:
        caller: who.
        seconds: in which its bucket refills by as much.
    """

    caller: Caller
    seconds: float


class RateStore(Protocol):
    """The token buckets of all replicas."""

    async def add(self, charges: Sequence[Charge]) -> list[float]:
        """Take tokens of several callers.

        Args:
            charges: at most one of each caller.

        Returns:
            Seconds until the bucket of each is full again, in their order.

        Raises:
            RatesUnavailable: the store did not answer; some of the charges may have arrived.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class ReplicaBuckets:
    """Buckets of this service that follow those of all replicas.

    A charge is sent once: one whose answer is lost counts here alone, so an outage never counts a request twice.

    Args:
        local: buckets of this process or of its workers.
        store: buckets of all replicas.
        interval_s: seconds between two exchanges.
        clock: seconds, monotonic; that of the `RateLimit`.
        most: callers that may wait for an exchange; of more the earliest counts here alone.
    """

    def __init__(
        self,
        local: Buckets,
        store: RateStore,
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = monotonic,
        most: int = MOST_CALLERS,
    ) -> None:
        self._local = local
        self._store = store
        self._interval_s = interval_s
        self._clock = clock
        self._most = most
        self._used: OrderedDict[Caller, float] = OrderedDict()
        self._exchanging: asyncio.Task[None] | None = None

    def update(self, caller: Caller, now: float, change: Callable[[float], float]) -> float:
        """See `Buckets.update`; what the caller uses is kept for the next exchange."""
        used = 0.0

        def noted(old: float) -> float:
            nonlocal used
            new = change(old)
            if new != old:  # else the request was refused
                used = new - max(old, now)
            return new

        old = self._local.update(caller, now, noted)
        if used > 0.0:
            self._used[caller] = self._used.get(caller, 0.0) + used
            if len(self._used) > self._most:
                self._used.popitem(last=False)
        return old

    def start(self) -> None:
        """Exchange from now on; call it in the event loop."""
        self._exchanging = asyncio.create_task(self._exchange_forever())

    async def close(self) -> None:
        """End the exchanges and close the store."""
        if self._exchanging is not None:
            self._exchanging.cancel()
            await asyncio.gather(self._exchanging, return_exceptions=True)
        await self._store.close()

    async def exchange(self) -> None:
        """Send what callers have used here, and learn what they have used in all replicas.

        Raises:
            RatesUnavailable: the store did not answer.
        """
        while self._used:
            together = min(_MOST_TOGETHER, len(self._used))
            charges = [Charge(*self._used.popitem(last=False)) for _ in range(together)]
            for charge, ahead in zip(charges, await self._store.add(charges), strict=True):
                now = self._clock()
                self._local.update(charge.caller, now, partial(max, now + ahead))

    async def _exchange_forever(self) -> None:
        while True:
            with contextlib.suppress(RatesUnavailable):  # counted and logged by the store's watch
                await self.exchange()
            await asyncio.sleep(self._interval_s)
