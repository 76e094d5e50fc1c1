"""Limits the rate of each caller by the generic cell rate algorithm, with one number a caller.

The number is the time at which the caller's token bucket is full again. A refused request takes no token.
"""

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address
from math import ceil
from time import monotonic

from service.errors import RateExceeded

_CALLERS = 65_536

Caller = bytes | str


class RateLimit:
    """Token buckets of callers; the least recent ones are dropped where there are too many.

    Args:
        rate: requests a second.
        burst: requests at once after a pause; None: as many as in two seconds.
        on_refusal: called at every refusal.
        callers: most buckets; a bucket takes about 200 bytes.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        rate: float,
        burst: int | None = None,
        *,
        on_refusal: Callable[[], None] = lambda: None,
        callers: int = _CALLERS,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._rate = rate
        self._interval = 1.0 / rate
        self._burst = max(1, ceil(2.0 * rate)) if burst is None else burst
        self._tolerance = (self._burst - 1) * self._interval
        self._on_refusal = on_refusal
        self._callers = callers
        self._clock = clock
        # Ordered: finding the first key of a plain dict is slow after many removals at its front.
        self._full_at: OrderedDict[Caller, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, caller: Caller) -> None:
        """Admit one request of a caller.

        Raises:
            RateExceeded: the request comes too early; has the seconds to wait.
        """
        now = self._clock()
        full_at = self._full_at.pop(caller, now)
        early_s = full_at - now - self._tolerance
        if early_s > 1e-9:
            self._full_at[caller] = full_at
            self._on_refusal()
            raise RateExceeded(
                f"at most {self._rate:g} requests a second, {self._burst} at once, are answered to each key or address",
                ceil(early_s),
            )
        self._keep(caller, max(full_at, now) + self._interval)

    def charge(self, caller: Caller, more: int) -> None:
        """Take further tokens for an admitted request: a batch of n costs n.

        Never refuses: an admitted batch is answered, and the caller's next request waits longer.
        """
        now = self._clock()
        self._keep(caller, max(self._full_at.pop(caller, now), now) + more * self._interval)

    def _keep(self, caller: Caller, full_at: float) -> None:
        """Newest last, so that the first is the least recent."""
        if len(self._full_at) >= self._callers:
            self._full_at.popitem(last=False)
        self._full_at[caller] = full_at


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
