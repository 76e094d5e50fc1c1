"""Remembers the bundles that may not be activated."""

from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic, time
from typing import Final

from service.bundles.loader import Identity
from service.errors import RETRIED, BundleRefused, RefusalReason

_MOST_REFUSALS: Final = 100
RETRY_S: Final = 10.0
"""Seconds after which a bundle is tried again whose refusal may pass without another publication."""


@dataclass(frozen=True, slots=True)
class BundleRefusal:
    """A bundle that was validated and may not be activated.

    Attributes:
        bundle: its id.
        identity: which publication of that id it was; a later one may be good.
        reason: one of a few words.
        message: what is wrong with it, with paths: for logs and for administrators.
        at: seconds since 1970, for administrators.
        noted_at: seconds, monotonic: the clock may go back.
    """

    bundle: str
    identity: Identity
    reason: RefusalReason
    message: str
    at: float
    noted_at: float

    @classmethod
    def of(cls, bundle_id: str, identity: Identity, error: BundleRefused) -> "BundleRefusal":
        """The refusal of a bundle now."""
        return cls(bundle_id, identity, error.reason, str(error), time(), monotonic())


class BundleRefusals:
    """The newest hundred refusals, one a bundle id, so that polling does not load the same bad bundle again."""

    def __init__(self) -> None:
        self._by_id: dict[str, BundleRefusal] = {}

    def __iter__(self) -> Iterator[BundleRefusal]:
        return iter(self._by_id.values())

    def add(self, refusal: BundleRefusal) -> None:
        """Remember a refusal; it replaces an earlier one of the same id."""
        self._by_id.pop(refusal.bundle, None)
        self._by_id[refusal.bundle] = refusal
        if len(self._by_id) > _MOST_REFUSALS:
            del self._by_id[next(iter(self._by_id))]

    def remove(self, bundle_id: str) -> None:
        """Forget a refusal, because the bundle was validated again and is good."""
        self._by_id.pop(bundle_id, None)

    def contains(self, bundle_id: str, identity: Identity) -> bool:
        """Whether exactly this publication of a bundle was refused; for a reason that may pass, lately."""
        refusal = self._by_id.get(bundle_id)
        if refusal is None or refusal.identity != identity:
            return False
        return refusal.reason not in RETRIED or monotonic() - refusal.noted_at < RETRY_S
