"""Loads bundles from the registry and translates what can go wrong into reasons to refuse a bundle."""

from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

from index.bundle.bundle import Bundle
from index.bundle.integrity import stamp_path
from index.bundle.registries import open_registry
from index.bundle.registry import Registry
from index.errors import (
    BundleInvalid,
    BundleNotFound,
    EncoderError,
    IndexingError,
    RegistryError,
    StoreUnavailable,
    lacks_resources,
    reading_failed,
)
from service.errors import BundleRefused, RefusalReason, RetrieverUnavailable
from service.retrieval.faiss_retriever import FAISS
from service.retrieval.retriever import Retriever
from service.settings.groups import BundleSettings

if TYPE_CHECKING:
    from service.bundles.store_polling import StorePolling

Identity = tuple[int, ...]

_MOST_BUNDLES: Final = 2

_REASONS: tuple[tuple[type[Exception], RefusalReason], ...] = (
    (BundleNotFound, "missing"),
    (BundleInvalid, "invalid"),
    (EncoderError, "encoder"),
    (RegistryError, "unavailable"),
    (IndexingError, "invalid"),
    (Exception, "error"),
)


class BundleLoader:
    """Loads bundles of one registry, all with the same options.

    Args:
        settings: registry, device, threads of one encoder call, and the check of files before a bundle is opened, see
            `index.bundle.integrity.verify_files`.
        on_load: called with every bundle that was loaded, for counting those in memory.
        on_download: called with the number of bytes that arrived from an object store.
        retriever: finds the items of every bundle.

    Attributes:
        settings: as given.
        retriever: as given.
    """

    def __init__(
        self,
        settings: BundleSettings,
        *,
        on_load: Callable[[Bundle], None] = lambda _bundle: None,
        on_download: Callable[[int], None] = lambda _bytes: None,
        retriever: Retriever = FAISS,
    ) -> None:
        self.retriever = retriever
        self._registry = open_registry(settings.registry, settings.registry_cache, settings.registry_cache_mb << 20)
        self.settings = settings
        self._on_load = on_load
        self._on_download = on_download
        self._loaded_last: deque[str] = deque(maxlen=_MOST_BUNDLES)
        self._read_at = monotonic()
        self._polling: StorePolling | None = None
        if not isinstance(self._registry, Registry):
            from service.bundles import store_polling

            self._polling = store_polling.StorePolling(
                self._registry, settings.poll_s, in_use=self._in_use, downloaded=on_download
            )

    def start(self) -> None:
        """Start to poll an object store; a directory is read when it is asked for."""
        if self._polling is not None:
            self._polling.start()

    def close(self) -> None:
        """End the polling of an object store."""
        if self._polling is not None:
            self._polling.close()

    @property
    def root(self) -> Path:
        """Directory of the bundles, or of their copies."""
        return self._registry.root

    @property
    def location(self) -> str:
        """The registry, for messages."""
        return self._registry.location

    @property
    def hashes_all(self) -> bool:
        """Whether loading hashes every file."""
        return self.settings.verify == "full"

    @property
    def one_thread(self) -> bool:
        """Whether the encoder of the active bundle may be used by one thread only, as on CUDA."""
        return self.settings.chosen_device != "cpu"

    def current(self) -> str | None:
        """The id of the registry's current bundle; None before the first publish.

        Raises:
            RegistryError: the pointer cannot be read.
        """
        return self._registry.current()

    def polled_current(self) -> str | None:
        """As :meth:`current`; of an object store what it answered last, without waiting for it.

        Raises:
            RegistryError: the pointer cannot be read.
        """
        if self._polling is None:
            current = self.current()
            self._read_at = monotonic()
            return current
        if self._polling.error is not None:
            raise StoreUnavailable(self._polling.error)
        return self._polling.current()

    def last_current(self) -> str | None:
        """As :meth:`current`; of an object store that does not answer what it answered last, to any process.

        Raises:
            RegistryError: the pointer cannot be read, and never was.
        """
        try:
            return self.current()
        except StoreUnavailable:
            if isinstance(self._registry, Registry) or (last := self._registry.last_pointer()) is None:
                raise
            return last.pointer.current

    @property
    def registry_age_s(self) -> float:
        """Seconds since the registry answered a look at its pointer, or since the start."""
        return monotonic() - (self._read_at if self._polling is None else self._polling.read_at)

    @property
    def cache_error(self) -> str | None:
        """Why the pointer of an object store cannot be saved; None: it is, or the registry is a directory."""
        return None if self._polling is None else self._polling.cache_error

    @property
    def download_error(self) -> str | None:
        """Why a bundle cannot be downloaded from an object store; None: nothing fails."""
        return None if self._polling is None else self._polling.download_error

    @property
    def downloading(self) -> str | None:
        """The bundle that is being downloaded from an object store; None: there is none."""
        return None if self._polling is None else self._polling.requested

    def is_here(self, bundle_id: str) -> bool:
        """Whether a bundle can be loaded without waiting; if not, its download goes on in the background."""
        return self._polling is None or self._polling.is_here(bundle_id)

    def fetch(self, bundle_id: str) -> None:
        """Download a bundle, if it lies in an object store and there is no copy of it.

        Raises:
            BundleRefused: it cannot be downloaded.
        """
        if self._polling is not None:
            try:
                self._path(bundle_id)
            except Exception as error:
                raise refusal(error) from error

    def check_searchable(self, bundle_id: str) -> None:
        """Check that the items of a bundle can be searched; it waits for the store that is searched.

        Raises:
            BundleRefused: they cannot be searched, or not yet, or the store does not answer.
        """
        try:
            self.retriever.check(bundle_id)
        except RetrieverUnavailable as error:
            raise BundleRefused("retrieval", f"{bundle_id}: {error}") from error

    def suspect(self, bundle_id: str) -> None:
        """Replace the copy of a bundle of an object store, if the copy is damaged."""
        if self._polling is not None:
            self._polling.suspect(bundle_id)

    def earlier(self, bundle_id: str) -> list[str]:
        """Ids of the bundles to roll back to, the best first; see `index.bundle.registry.Registry.earlier`.

        Raises:
            RegistryError: the registry cannot be read.
        """
        return self._registry.earlier(bundle_id)

    def has(self, bundle_id: str) -> bool:
        """Whether the registry has a bundle of this id, valid or not."""
        if isinstance(self._registry, Registry):
            return (self._registry.root / bundle_id).is_dir()
        pointer = self._registry.last_pointer()
        return pointer is not None and bundle_id in pointer.ids

    def precedes(self, bundle_id: str, active: str, earlier: list[str] | None) -> bool:
        """Whether a bundle was published before the active one; judged by their names if the registry does not tell.

        Args:
            bundle_id: of the bundle.
            active: id of the active bundle.
            earlier: ids of those published before it; None if the registry cannot be read.
        """
        if earlier is not None and (bundle_id in earlier or self.has(bundle_id)):
            return bundle_id in earlier
        return bundle_id < active

    def identity(self, bundle_id: str) -> Identity:
        """Inode and time of a bundle's directory and stamp, which differ if the same id is published again.

        Empty where there is neither.
        """
        path = self._registry.root / bundle_id
        found: Identity = ()
        for part in (path, stamp_path(path)):
            try:
                status = part.stat()
            except OSError:
                continue
            found += (status.st_ino, status.st_mtime_ns)
        return found

    def load(self, bundle_id: str, *, verified: bool = False) -> Bundle:
        """Load a bundle without warming it up.

        Args:
            bundle_id: which.
            verified: another worker has verified these files in full already, so their stamp is enough here.

        Raises:
            BundleRefused: it cannot be loaded.
        """
        try:
            bundle = self._load(bundle_id, verified)
        except Exception as error:
            raise refusal(error) from error
        self._loaded_last.append(bundle_id)
        self._on_load(bundle)
        return bundle

    def _load(self, bundle_id: str, verified: bool) -> Bundle:
        verify = "stamp" if verified else self.settings.verify
        load = partial(
            Bundle.load,
            device=self.settings.chosen_device,
            threads=self.settings.encoder_threads,
            verify=verify,
            ahead=not self.retriever.waits,
        )
        try:
            return load(self._path(bundle_id))
        except BundleInvalid:
            if isinstance(self._registry, Registry) or not self._registry.drop_if_damaged(bundle_id):
                raise
        return load(self._path(bundle_id))  # a new copy

    def _path(self, bundle_id: str) -> Path:
        """Directory of a bundle, after its download where it lies in an object store."""
        if isinstance(self._registry, Registry):
            return self._registry.path(bundle_id)
        return self._registry.download(bundle_id, keep=self._in_use(), progress=self._on_download)

    def _in_use(self) -> tuple[str, ...]:
        """The bundles that were loaded last, of which at most two are in memory."""
        return tuple(self._loaded_last)


def refusal(error: Exception) -> BundleRefused:
    """The refusal that an error stands for which was raised while a bundle was loaded or validated."""
    if isinstance(error, BundleRefused):
        return error
    if isinstance(error, RetrieverUnavailable):
        return BundleRefused("retrieval", str(error))
    if lacks_resources(error):
        return BundleRefused("resources", str(error) or type(error).__name__)
    if reading_failed(error):
        return BundleRefused("unavailable", str(error) or type(error).__name__)
    reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
    message = str(error) if isinstance(error, IndexingError) else f"{type(error).__name__}: {error}"
    return BundleRefused(reason, message)
