"""Refusals: which bundles may not serve and why, remembered so that polling does not try them again and again."""

from collections.abc import Iterator
from dataclasses import dataclass
from time import time

from service.bundles.loader import Identity
from service.errors import BundleRefused, RefusalReason

_KEPT = 100


@dataclass(frozen=True, slots=True)
class Refusal:
    """A bundle that was tried and may not serve.

    Attributes:
        bundle: its id.
        identity: which publishing of that id it was; another one may be whole.
        reason: one of a few words.
        message: what is wrong with it, with paths: for logs and for administrators.
        at: seconds since 1970.
    """

    bundle: str
    identity: Identity
    reason: RefusalReason
    message: str
    at: float

    @classmethod
    def of(cls, bundle_id: str, identity: Identity, error: BundleRefused) -> "Refusal":
        """The refusal of a bundle now."""
        return cls(bundle_id, identity, error.reason, str(error), time())


class Refusals:
    """The newest hundred refusals, one a bundle id."""

    def __init__(self) -> None:
        self._kept: dict[str, Refusal] = {}

    def __iter__(self) -> Iterator[Refusal]:
        return iter(self._kept.values())

    def add(self, refusal: Refusal) -> None:
        """Remember a refusal in the place of an earlier one of the same id."""
        self._kept.pop(refusal.bundle, None)
        self._kept[refusal.bundle] = refusal
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]

    def forgive(self, bundle_id: str) -> None:
        """Forget a refusal: the bundle was tried again and may serve."""
        self._kept.pop(bundle_id, None)

    def knows(self, bundle_id: str, identity: Identity) -> bool:
        """Whether this very publishing of a bundle was refused."""
        refusal = self._kept.get(bundle_id)
        return refusal is not None and refusal.identity == identity
