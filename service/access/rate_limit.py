"""RateLimit: how often each caller may call, after the generic cell rate algorithm: one number a caller.

That number is the time at which the caller's account is even again; a token bucket that is full is an account that is
even. What is over the limit costs nothing but the refusal: it is not added to the account.
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
    """Accounts of callers; the least recent are forgotten where there are too many.

    Args:
        rate: requests a second.
        burst: requests at once after a pause; None: those of two seconds.
        on_refusal: told of every refusal.
        callers: accounts kept at most; an account is about 200 bytes.
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
        # Ordered, because finding the first key of a plain dict is slow where many before it were taken out.
        self._even_at: OrderedDict[Caller, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._even_at)

    def take(self, caller: Caller) -> None:
        """Let one request of a caller in.

        Raises:
            RateExceeded: it comes too early; tells when it would not.
        """
        now = self._clock()
        even_at = self._even_at.pop(caller, now)
        early_s = even_at - now - self._tolerance
        if early_s > 1e-9:
            self._even_at[caller] = even_at
            self._on_refusal()
            raise RateExceeded(
                f"at most {self._rate:g} requests a second, {self._burst} at once, are answered to each key or address",
                ceil(early_s),
            )
        self._keep(caller, max(even_at, now) + self._interval)

    def charge(self, caller: Caller, more: int) -> None:
        """Add to a caller's account what a request that was let in costs beyond one: a batch of n costs n.

        Never refuses: a batch that began is answered, and the next request waits for longer.
        """
        now = self._clock()
        self._keep(caller, max(self._even_at.pop(caller, now), now) + more * self._interval)

    def _keep(self, caller: Caller, even_at: float) -> None:
        """Newest last, so that the first is the least recent."""
        if len(self._even_at) >= self._callers:
            self._even_at.popitem(last=False)
        self._even_at[caller] = even_at


def caller_at(address: str) -> str:
    """Who calls from an address: of IPv6 the network of 64 bits, of which one household or machine has all."""
    if ":" not in address:
        return address
    try:
        parsed = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped is not None else str(IPv6Address(int(parsed) >> 64 << 64))
