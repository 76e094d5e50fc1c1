"""Reads the pointer of a registry in an object store and downloads bundles, in threads of its own.

A store may be slow or hang. Neither the poll, which also applies pins and hidden items, nor a request waits for it:
what the store answered last is known at once, and a bundle is loaded only when its copy is whole.
"""

import threading
from collections.abc import Callable, Collection
from functools import partial
from time import monotonic
from typing import Final

from index.bundle.store.bundle_cache import DownloadStopped
from index.bundle.store.store_registry import StoreRegistry
from index.errors import IndexingError
from service.runtime.background_tasks import lower_priority

_DOWNLOAD_NICE: Final = 10
_LONGEST_PAUSE_S: Final = 5.0
_LONGEST_REST_S: Final = 60.0


class StorePolling:
    """What one service knows of a registry in an object store.

    Args:
        registry: the registry.
        poll_s: seconds between two looks at the pointer, and the shortest pause after a failed download.
        in_use: ids of the bundles whose copies must stay.
        downloaded: called with the number of bytes that arrived.
    """

    def __init__(
        self,
        registry: StoreRegistry,
        poll_s: float,
        *,
        in_use: Callable[[], Collection[str]],
        downloaded: Callable[[int], None],
    ) -> None:
        self._registry = registry
        self._poll_s = poll_s
        self._in_use = in_use
        self._downloaded = downloaded
        self._closed = threading.Event()
        self._work = threading.Condition()
        self._requested: str | None = None
        self._suspects: set[str] = set()
        self._error: str | None = None
        self._read_at = monotonic()
        self._download_error: str | None = None

    def start(self) -> None:
        """Start the threads; they are daemons, so that a hanging store does not keep the process from ending."""
        for name, work in (("store-pointer", self._read_forever), ("store-download", self._download_forever)):
            threading.Thread(target=work, name=name, daemon=True).start()

    def close(self) -> None:
        """End the threads soon; a broken download is continued by the next process."""
        self._closed.set()
        with self._work:
            self._work.notify_all()

    @property
    def requested(self) -> str | None:
        """The bundle whose copy is not whole yet; None: none is requested."""
        return self._requested

    @property
    def error(self) -> str | None:
        """Why the last look at the pointer failed; None: it did not."""
        return self._error

    @property
    def read_at(self) -> float:
        """When the pointer was read last, by the monotonic clock; at first the time of the start."""
        return self._read_at

    @property
    def cache_error(self) -> str | None:
        """Why the pointer cannot be saved beside the copies; None: it is saved."""
        return self._registry.save_error

    @property
    def download_error(self) -> str | None:
        """Why the download of the requested bundle fails; None: it does not."""
        return self._download_error

    def current(self) -> str | None:
        """The current bundle as the store answered last; None: nothing is published, or it never answered."""
        pointer = self._registry.last_pointer()
        return None if pointer is None else pointer.pointer.current

    def is_here(self, bundle_id: str) -> bool:
        """Whether there is a whole copy of a bundle; if not, it is requested in place of an earlier request."""
        here = self._registry.has_copy(bundle_id)
        with self._work:
            if here:
                self._requested = self._download_error = None
            elif self._requested != bundle_id:
                self._requested, self._download_error = bundle_id, None
                self._work.notify_all()
        return here

    def suspect(self, bundle_id: str) -> None:
        """Verify the copy of a bundle in the background and remove it if it is damaged, so that it is replaced."""
        with self._work:
            self._suspects.add(bundle_id)
            self._work.notify_all()

    def _read_forever(self) -> None:
        while not self._closed.wait(self._poll_s):
            try:
                self._registry.read_pointer()
            except Exception as error:  # noqa: BLE001 - the next look follows, whatever this one met
                self._error = _text(error)
            else:
                self._error, self._read_at = None, monotonic()

    def _download_forever(self) -> None:
        lower_priority(_DOWNLOAD_NICE)  # hashing gigabytes takes a core for many seconds
        pause = self._poll_s
        while (bundle_id := self._next()) is not None:
            began = monotonic()
            try:
                self._registry.download(
                    bundle_id,
                    keep=self._in_use(),
                    stop=partial(self._is_superseded, bundle_id),
                    progress=self._downloaded,
                )
            except DownloadStopped:
                continue
            except Exception as error:  # noqa: BLE001 - reported by the next poll, and tried again
                self._download_error = _text(error)
                # A content that is wrong shows at the end of a long download, so the next one waits as long as it took.
                self._closed.wait(max(pause, min(monotonic() - began, _LONGEST_REST_S)))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                self._download_error, pause = None, self._poll_s
                with self._work:
                    if self._requested == bundle_id:
                        self._requested = None

    def _is_superseded(self, bundle_id: str) -> bool:
        return self._closed.is_set() or self._requested != bundle_id

    def _next(self) -> str | None:
        """The bundle to download next; None: the polling ends. Suspects are verified first."""
        while True:
            with self._work:
                self._work.wait_for(lambda: self._closed.is_set() or self._requested or self._suspects)
                if self._closed.is_set():
                    return None
                if not self._suspects:
                    return self._requested
                suspect = self._suspects.pop()
            try:
                self._registry.drop_if_damaged(suspect)
            except IndexingError as error:
                self._download_error = str(error)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, IndexingError) else f"{type(error).__name__}: {error}"
