"""Loads bundles from the registry and translates what can go wrong into reasons to refuse a bundle."""

from collections.abc import Callable
from pathlib import Path

from index.bundle.bundle import Bundle
from index.bundle.integrity import stamp_path
from index.bundle.registry import Registry
from index.errors import BundleInvalid, BundleNotFound, EncoderError, IndexingError
from service.errors import BundleRefused, RefusalReason
from service.settings.groups import BundleSettings

Identity = tuple[int, ...]

_REASONS: tuple[tuple[type[Exception], RefusalReason], ...] = (
    (BundleNotFound, "missing"),
    (BundleInvalid, "invalid"),
    (EncoderError, "encoder"),
    (IndexingError, "invalid"),
    (Exception, "error"),
)


class BundleLoader:
    """Loads bundles of one registry, all with the same options.

    Args:
        settings: registry, device, threads of one encoder call, and the check of files before a bundle is opened, see
            `index.bundle.integrity.verify_files`.
        on_load: called with every bundle that was loaded, for counting those in memory.

    Attributes:
        settings: as given.
    """

    def __init__(self, settings: BundleSettings, *, on_load: Callable[[Bundle], None] = lambda _bundle: None) -> None:
        self._registry = Registry(settings.registry)
        self.settings = settings
        self._on_load = on_load

    @property
    def root(self) -> Path:
        """The registry's directory."""
        return self._registry.root

    @property
    def hashes_all(self) -> bool:
        """Whether loading hashes every file."""
        return self.settings.verify == "full"

    @property
    def one_thread(self) -> bool:
        """Whether the encoder of the active bundle may be used by one thread only, as on CUDA."""
        return self.settings.device != "cpu"

    def current(self) -> str | None:
        """The id of the registry's current bundle; None before the first publish.

        Raises:
            RegistryError: the pointer cannot be read.
        """
        return self._registry.current()

    def earlier(self, bundle_id: str) -> list[str]:
        """Ids of the bundles to roll back to, the best first; see `index.bundle.registry.Registry.earlier`.

        Raises:
            RegistryError: the registry cannot be read.
        """
        return self._registry.earlier(bundle_id)

    def has(self, bundle_id: str) -> bool:
        """Whether the registry has a bundle of this id, valid or not."""
        return (self._registry.root / bundle_id).is_dir()

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

    def load(self, bundle_id: str) -> Bundle:
        """Load a bundle without warming it up.

        Raises:
            BundleRefused: it cannot be loaded.
        """
        try:
            bundle = Bundle.load(
                self._registry.path(bundle_id),
                device=self.settings.device,
                threads=self.settings.encoder_threads,
                verify=self.settings.verify,
            )
        except Exception as error:
            raise refusal(error) from error
        self._on_load(bundle)
        return bundle


def refusal(error: Exception) -> BundleRefused:
    """The refusal that an error stands for which was raised while a bundle was loaded or validated."""
    if isinstance(error, BundleRefused):
        return error
    reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
    message = str(error) if isinstance(error, IndexingError) else f"{type(error).__name__}: {error}"
    return BundleRefused(reason, message)
