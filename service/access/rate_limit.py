"""Limits the rate of each caller by the generic cell rate algorithm, with one number a caller.

The number is the time at which the caller's token bucket is full again. A refused request takes no token.
"""

from collections.abc import Callable
from ipaddress import IPv6Address
from math import ceil
from time import monotonic

from service.access.buckets import Buckets, Caller, LocalBuckets
from service.errors import RateExceeded


class RateLimit:
    """Admits the requests of a caller as its token bucket allows.

    Args:
        rate: requests a second.
        burst: requests at once after a pause; None: as many as in two seconds.
        on_refusal: called at every refusal.
        buckets: of all callers; None: of this process alone.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        rate: float,
        burst: int | None = None,
        *,
        on_refusal: Callable[[], None] = lambda: None,
        buckets: Buckets | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._rate = rate
        self._interval = 1.0 / rate
        self._burst = max(1, ceil(2.0 * rate)) if burst is None else burst
        self._tolerance = (self._burst - 1) * self._interval
        self._on_refusal = on_refusal
        self._buckets: Buckets = LocalBuckets() if buckets is None else buckets
        self._clock = clock

    def take(self, caller: Caller) -> None:
        """Admit one request of a caller.

        Raises:
            RateExceeded: the request comes too early; has the seconds to wait.
        """
        now = self._clock()
        tolerated = now + self._tolerance + 1e-9
        full_at = self._buckets.update(
            caller, now, lambda old: old if old > tolerated else max(old, now) + self._interval
        )
        if full_at > tolerated:
            self._on_refusal()
            raise RateExceeded(
                f"at most {self._rate:g} requests a second, {self._burst} at once, are answered to each key or address",
                ceil(full_at - now - self._tolerance),
            )

    def charge(self, caller: Caller, more: int) -> None:
        """Take further tokens for an admitted request: a batch of n costs n.

        Never refuses: an admitted batch is answered, and the caller's next request waits longer.
        """
        now = self._clock()
        self._buckets.update(caller, now, lambda old: max(old, now) + more * self._interval)


def caller_at(address: str) -> str:
    """The caller at an address: for IPv6 its /64 network, which belongs to one household or machine."""
    if ":" not in address:
        return address
    try:
        parsed = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped is not None else str(IPv6Address(int(parsed) >> 64 << 64))
