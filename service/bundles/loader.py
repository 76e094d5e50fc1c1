"""BundleLoader: the registry as the service sees it: which bundle is pointed to, and bundles ready to answer."""

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
    """Loads bundles of one registry in one way.

    Args:
        settings: registry, device, threads of one encoder call, and the check of files before a bundle is opened, see
            `index.bundle.integrity.verify_files`.
        loaded: told every bundle that is loaded, for counting those in memory.
    """

    def __init__(self, settings: BundleSettings, *, loaded: Callable[[Bundle], None] = lambda _bundle: None) -> None:
        self._registry = Registry(settings.registry)
        self._settings = settings
        self._loaded = loaded

    @property
    def root(self) -> Path:
        """The registry's directory."""
        return self._registry.root

    @property
    def hashes_all(self) -> bool:
        """Whether loading hashes every file."""
        return self._settings.verify == "full"

    @property
    def one_thread(self) -> bool:
        """Whether the encoder of a bundle that answers may be touched by the thread that answers alone."""
        return self._settings.device != "cpu"

    def pointed(self) -> str | None:
        """The id that the pointer names; None before the first publish.

        Raises:
            RegistryError: the pointer cannot be read.
        """
        return self._registry.current()

    def earlier(self, bundle_id: str) -> list[str]:
        """Ids of the bundles to go back to from this one, the best first; see `index.bundle.registry.Registry.earlier`.

        Raises:
            RegistryError: the registry cannot be read.
        """
        return self._registry.earlier(bundle_id)

    def has(self, bundle_id: str) -> bool:
        """Whether the registry has a bundle of this id, good or bad."""
        return (self._registry.root / bundle_id).is_dir()

    def identity(self, bundle_id: str) -> Identity:
        """What tells a bundle from another one published under the same id: inode and time of its directory and stamp.

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
        """Load a bundle; it is not warm yet.

        Raises:
            BundleRefused: it cannot be used.
        """
        try:
            bundle = Bundle.load(
                self._registry.path(bundle_id),
                device=self._settings.device,
                threads=self._settings.encoder_threads,
                verify=self._settings.verify,
            )
        except Exception as error:
            raise refusal(error) from error
        self._loaded(bundle)
        return bundle


def refusal(error: Exception) -> BundleRefused:
    """What an error while a bundle is loaded or tried says about the bundle."""
    if isinstance(error, BundleRefused):
        return error
    reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
    message = str(error) if isinstance(error, IndexingError) else f"{type(error).__name__}: {error}"
    return BundleRefused(reason, message)
