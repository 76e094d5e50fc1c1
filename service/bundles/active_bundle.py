"""CurrentBundle: the one value that says which bundle answers, swapped whole; and whether answers are given at all."""

from dataclasses import dataclass
from time import time

from index.bundle.bundle import Bundle
from service.errors import ENDING, NotReady


@dataclass(frozen=True, slots=True)
class Loaded:
    """A bundle that is loaded and warm.

    Attributes:
        bundle: immutable; its encoder is inside.
        since: seconds since 1970 when it began to answer.
    """

    bundle: Bundle
    since: float


class CurrentBundle:
    """Holds the bundle that answers. A request takes it once and keeps what it got, so no answer mixes two."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None
        self._none_loaded = "no bundle is loaded yet; try again soon"
        self._leaving = False
        self._draining = False

    def admit(self) -> None:
        """Let a request in; it takes its bundle with :meth:`get` when it needs it.

        Raises:
            NotReady: none is loaded yet, or the process is draining.
        """
        if self._draining:
            raise NotReady(ENDING)
        self.get()

    def check_ready(self) -> None:
        """Whether more requests should be sent here.

        Raises:
            NotReady: none is loaded yet, or the process is about to end, though it still answers.
        """
        if self._leaving:
            raise NotReady(ENDING)
        self.admit()

    def get(self) -> Bundle:
        """The bundle that answers now, also to a request that was let in before the process began to drain.

        Raises:
            NotReady: none is loaded yet, or the last one was withdrawn.
        """
        loaded = self._loaded
        if loaded is None:
            raise NotReady(self._none_loaded)
        return loaded.bundle

    def withdraw(self, reason: str) -> None:
        """Let no bundle answer until another one is swapped in.

        Args:
            reason: told to those who ask meanwhile.
        """
        self._loaded, self._none_loaded = None, reason

    def swap(self, bundle: Bundle) -> None:
        """Let another bundle, loaded and warm, answer from now on."""
        self._loaded = Loaded(bundle, time())

    def leave(self) -> None:
        """Be ready no more, but answer."""
        self._leaving = True

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._draining = True

    @property
    def loaded(self) -> Loaded | None:
        """The loaded bundle, also while draining; for metrics."""
        return self._loaded
