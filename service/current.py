"""CurrentBundle: the one value that says which bundle answers, swapped whole; and whether answers are given at all."""

from dataclasses import dataclass
from time import time

from index.bundle import Bundle
from service.errors import NotReady


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
    """Holds the bundle that answers. A request calls :meth:`get` once and keeps what it got, so no answer mixes two."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None
        self._draining = False

    def get(self) -> Bundle:
        """The bundle that answers now.

        Raises:
            NotReady: none is loaded yet, or the process is draining.
        """
        loaded = self._loaded
        if self._draining:
            raise NotReady("this process is ending; ask another replica")
        if loaded is None:
            raise NotReady("no bundle is loaded yet; try again soon")
        return loaded.bundle

    def swap(self, bundle: Bundle) -> None:
        """Let another bundle, loaded and warm, answer from now on."""
        self._loaded = Loaded(bundle, time())

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._draining = True

    @property
    def loaded(self) -> Loaded | None:
        """The loaded bundle, also while draining; for metrics."""
        return self._loaded
