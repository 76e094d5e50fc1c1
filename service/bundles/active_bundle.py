"""Holds the bundle that answers requests, and whether this process accepts requests at all."""

from dataclasses import dataclass
from time import time

from index.bundle.bundle import Bundle
from service.errors import ENDING, NotReady


@dataclass(frozen=True, slots=True)
class Activation:
    """A bundle that was activated.

    Attributes:
        bundle: loaded and warm; immutable; its encoder is inside.
        since: seconds since 1970 when it became active.
    """

    bundle: Bundle
    since: float


class ActiveBundle:
    """Holds the active bundle. A request reads it once and uses that one to its end, so no answer mixes two bundles."""

    def __init__(self) -> None:
        self._activation: Activation | None = None
        self._beside: Bundle | None = None
        self._reason = "no bundle is loaded yet; try again soon"
        self._leaving = False
        self._draining = False

    def admit(self) -> None:
        """Admit a request; it reads its bundle with :meth:`get` when it needs it.

        Raises:
            NotReady: none is loaded yet, or the process is draining.
        """
        if self._draining:
            raise NotReady(ENDING)
        self.get()

    def check_ready(self) -> None:
        """Check whether more requests should be sent to this process.

        Raises:
            NotReady: none is loaded yet, or the process is about to end, though it still answers.
        """
        if self._leaving:
            raise NotReady(ENDING)
        self.admit()

    def get(self) -> Bundle:
        """The active bundle, also for a request that was admitted before the process began to drain.

        Raises:
            NotReady: none is loaded yet, or the last one was withdrawn.
        """
        activation = self._activation
        if activation is None:
            raise NotReady(self._reason)
        return activation.bundle

    def named(self, bundle_id: str) -> Bundle | None:
        """The bundle of this id, if it is the active one or the one beside it."""
        activation, beside = self._activation, self._beside
        if activation is not None and activation.bundle.id == bundle_id:
            return activation.bundle
        return beside if beside is not None and beside.id == bundle_id else None

    def is_active(self, bundle: Bundle) -> bool:
        """Whether this very bundle is the active one."""
        return self._activation is not None and self._activation.bundle is bundle

    @property
    def in_memory(self) -> tuple[Bundle, ...]:
        """The active bundle and the one beside it, as far as there are such."""
        held = (None if self._activation is None else self._activation.bundle, self._beside)
        return tuple(bundle for bundle in held if bundle is not None)

    def keep_beside(self, bundle: Bundle | None) -> None:
        """Set the second bundle in memory, which answers only where an arm of an experiment names it."""
        self._beside = bundle

    def withdraw(self, reason: str) -> None:
        """Have no active bundle until another one is swapped in.

        Args:
            reason: detail of the `NotReady` that requests get meanwhile.
        """
        self._activation, self._reason = None, reason

    def swap(self, bundle: Bundle) -> None:
        """Activate another bundle, which is loaded and warm."""
        self._activation = Activation(bundle, time())

    def leave(self) -> None:
        """Report not ready from now on, but go on answering."""
        self._leaving = True

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._draining = True

    @property
    def activation(self) -> Activation | None:
        """The active bundle and since when, also while draining."""
        return self._activation
