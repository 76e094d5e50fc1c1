"""Opens a registry by its path or URL: a directory, or a prefix of an object store."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from index.bundle.registry import Registry
from index.machine.outputs import check_directory_writable

if TYPE_CHECKING:
    from index.bundle.store.store_registry import StoreRegistry

AnyRegistry: TypeAlias = Union[Registry, "StoreRegistry"]
"""A registry, wherever it lies."""


def is_store_url(root: str | Path) -> bool:
    """Whether a registry's place is the URL of an object store."""
    return isinstance(root, str) and root.lower().startswith("s3:")


def check_publishable(registry: AnyRegistry) -> None:
    """Check before a bundle is built that it can be published; nothing is left behind.

    Raises:
        DiskError: the directory cannot be written.
        StoreUnavailable: the store does not answer, or does not permit it.
        RegistryError: the store has no conditional writes.
    """
    if isinstance(registry, Registry):
        check_directory_writable(registry.root)
    else:
        registry.check_writable()


def open_registry(root: str | Path, cache: Path | None = None, cache_bytes: int | None = None) -> AnyRegistry:
    """The registry at a place; nothing is read or written yet.

    Args:
        root: a directory, its ``file://`` URL, or ``s3://bucket/prefix``.
        cache: directory for local copies of the bundles of an object store; None: below XDG_CACHE_HOME.
        cache_bytes: most bytes of these copies; None: 20,000 MiB.

    Raises:
        RegistryError: the place has another form, or the extra for object stores is missing.
    """
    if not is_store_url(root):
        return Registry(root)
    from index.bundle.store.store_registry import StoreRegistry

    return StoreRegistry(str(root), cache, cache_bytes)
