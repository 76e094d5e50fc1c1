"""Copies published bundles into a backup and back, every byte compared with the manifests of the bundles.

A registry may be a directory or lie in an object store; a backup of one can be restored to the other.
"""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from index.bundle.bundle import Bundle
from index.bundle.integrity import sync_directory, sync_file, verify_files
from index.bundle.manifest import MANIFEST_FILE, Manifest
from index.bundle.permissions import remove_directory
from index.bundle.pointer import POINTER_FILE, Pointer
from index.bundle.registries import AnyRegistry
from index.bundle.registry import Registry
from index.bundle.store.bundle_cache import BUNDLES
from index.bundle.store.store_pointer import bundle_of, new_place
from index.bundle.store.store_registry import StoreRegistry
from index.errors import BundleInvalid, BundleNotFound, StoreUnavailable
from service.errors import BackupRefused

Report = Callable[[str, int, int | None], None]
"""Called with a step, and how many of how many pieces are done; None: their number is not known."""

CopyBundle = Callable[[str, Path], str | None]
"""Copies a bundle by its id into a directory; returns its content hash, None if it was pruned meanwhile."""

_PARTIAL: Final = ".partial-"
_DOWNLOADS: Final = ".downloads"
_WRITABLE: Final = 0o600  # a registry shares read-only files by hard links, and a backup must share none


def copy_registry(registry: AnyRegistry, target: Path, report: Report) -> tuple[Pointer, dict[str, str]]:
    """Copy all published bundles and the pointer; bundles that an interrupted backup copied are not copied again.

    Args:
        registry: services and publishers may use it meanwhile.
        target: directory of the copies.
        report: called for each bundle.

    Returns:
        The pointer of the copy and the content hash of each bundle by id.

    Raises:
        BackupRefused: nothing is published, or a bundle is damaged.
        StoreUnavailable: the object store does not answer, or sends something else.
        OSError: a file cannot be written.
    """
    target.mkdir(exist_ok=True)
    for leftover in target.glob(f"{_PARTIAL}*"):
        remove_directory(leftover)
    copied: dict[str, str] = {}
    pointer, present, copy = _published(registry, target / _DOWNLOADS)
    for number, name in enumerate(present):
        report("bundles", number, len(present))
        content = copy(name, target)
        if content is not None:
            copied[name] = content
    if pointer.current is None or pointer.current not in copied:
        raise BackupRefused(
            f"{registry.location}: has no current bundle; publish one, or leave the registry out with --no-registry"
        )
    for path in target.iterdir():
        if path.is_dir() and path.name not in copied:
            remove_directory(path)
    pointer = Pointer(
        pointer.current, tuple(name for name in pointer.previous if name in copied), tuple(name for name in copied)
    )
    pointer.write(target / POINTER_FILE)
    report("bundles", len(present), len(present))
    return pointer, copied


def _published(registry: AnyRegistry, downloads: Path) -> tuple[Pointer, Sequence[str], CopyBundle]:
    """The pointer, the ids of the published bundles in the order of their publication, and how each is copied."""
    if isinstance(registry, Registry):
        pointer = Pointer.read(registry.pointer)
        return pointer, [info.id for info in registry.list() if info.published], partial(_copy_bundle, registry.root)
    stored = registry.read_pointer()
    pointer, never = stored.pointer, stored.pointer.never_published(stored.ids)
    present = [name for name in pointer.order(stored.ids) if name not in never]
    return pointer, present, partial(_download_bundle, StoreRegistry(registry.location, downloads, sys.maxsize))


def check_bundle(bundle: Path, content: str) -> Manifest:
    """Verify every byte of a bundle of a backup; returns its manifest.

    Raises:
        BackupRefused: it is missing, altered, or another one.
    """
    try:
        manifest = Manifest.read(bundle)
        verify_files(bundle, manifest, "full")
    except BundleInvalid as error:
        raise BackupRefused(f"{bundle}: the bundle in the backup is damaged: {error}") from error
    if (manifest.id, manifest.content) != (bundle.name, content):
        raise BackupRefused(f"{bundle}: is another bundle than the backup had; take another copy of the backup")
    return manifest


class RestoredRegistry(Registry):
    """A registry to which a backup is restored."""

    def restore(self, source: Path, bundles: dict[str, str], report: Report) -> None:
        """Copy bundles in, each verified and loaded once, then move the pointer; others stay.

        Args:
            source: ``registry`` of a backup.
            bundles: content hash by id.
            report: called for each bundle.

        Raises:
            BackupRefused: a bundle is damaged.
            BundleInvalid: a bundle cannot be loaded.
            RegistryError: the directory cannot be written.
        """
        pointer = Pointer.read(source / POINTER_FILE)
        with self._writing():
            for number, (name, content) in enumerate(bundles.items()):
                report("bundles", number, len(bundles))
                manifest = check_bundle(source / name, content)
                if not self._has_intact(manifest, None):
                    self._copy_in(source / name, manifest, None)
            pointer.write(self.pointer)
        report("bundles", len(bundles), len(bundles))


class RestoredStoreRegistry(StoreRegistry):
    """A registry in an object store to which a backup is restored."""

    def restore(self, source: Path, bundles: dict[str, str], report: Report) -> None:
        """Write bundles, each verified and loaded once, then move the pointer; others stay.

        None of them is published before the end. A restore that was killed finds what it has written by a listing, and
        goes on with the next bundle.

        Args:
            source: ``registry`` of a backup.
            bundles: content hash by id.
            report: called for each bundle.

        Raises:
            BackupRefused: a bundle is damaged.
            BundleInvalid: a bundle cannot be loaded.
            StoreUnavailable: the store does not answer.
            RegistryError: the store has no conditional writes, or its pointer breaks a rule.
        """
        pointer = Pointer.read(source / POINTER_FILE)
        self._store.check_conditional_writes()
        known = [*self._change(lambda found: found).places.values(), *self._store.names(BUNDLES)]
        places: dict[str, str] = {}
        for number, (name, content) in enumerate(bundles.items()):
            report("bundles", number, len(bundles))
            manifest = check_bundle(source / name, content)
            written = (place for place in known if bundle_of(place) == name and self._is_intact(place, manifest))
            if (place := next(written, None)) is None:
                Bundle.load(source / name).check_content()
                place = new_place(name)
                self._write(source / name, place, manifest, None)
            places[name] = place
        self._change(lambda found: replace(found, pointer=pointer, places={**found.places, **places}))
        report("bundles", len(bundles), len(bundles))

    def current(self) -> str | None:
        """The id of the current bundle, read without the copy of an earlier pointer; None: there is none.

        Raises:
            StoreUnavailable: the store does not answer.
            RegistryError: the pointer breaks a rule.
        """
        return self._change(lambda found: found).pointer.current


def _download_bundle(registry: StoreRegistry, name: str, target: Path) -> str | None:
    """Download one bundle; returns its content hash, None if it was pruned meanwhile."""
    final = target / name
    if final.is_dir():
        if (content := _content_of(final)) is not None:
            return content
        remove_directory(final)
    try:
        copy = registry.download(name)
    except (BundleNotFound, StoreUnavailable):
        if name in registry.read_pointer().ids:
            raise
        return None
    manifest = Manifest.read(copy)
    for file in (*manifest.files, MANIFEST_FILE):
        (copy / file).chmod(_WRITABLE)
    copy.rename(final)
    sync_directory(target)
    return manifest.content


def _content_of(copy: Path) -> str | None:
    """The content hash of a bundle in a backup; None if it is damaged."""
    try:
        manifest = Manifest.read(copy)
        verify_files(copy, manifest, "full")
    except BundleInvalid:
        return None
    return manifest.content if manifest.id == copy.name else None


def _copy_bundle(root: Path, name: str, target: Path) -> str | None:
    """Copy one bundle; returns its content hash, None if it was pruned meanwhile."""
    bundle = root / name
    final, partial = target / bundle.name, target / f"{_PARTIAL}{bundle.name}"
    try:
        manifest = Manifest.read(bundle)
        if final.is_dir():
            if _content_of(final) == manifest.content:
                return manifest.content
            remove_directory(final)
        for name in (*manifest.files, MANIFEST_FILE):
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, path, follow_symlinks=False)
            path.chmod(_WRITABLE)
            sync_file(path)
        verify_files(partial, manifest, "full")
    except (BundleInvalid, FileNotFoundError) as error:
        if not bundle.is_dir():
            return None
        raise BackupRefused(
            f"{bundle}: is damaged ({error}); publish it again, prune it, or leave the registry out with --no-registry"
        ) from error
    for directory in {(partial / name).parent for name in manifest.files}:
        sync_directory(directory)
    partial.rename(final)
    sync_directory(target)
    return manifest.content
