"""Copies published bundles into a backup and back, every byte compared with the manifests of the bundles."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from index.bundle.integrity import sync_directory, sync_file, verify_files
from index.bundle.manifest import MANIFEST_FILE, Manifest
from index.bundle.permissions import remove_directory
from index.bundle.pointer import POINTER_FILE, Pointer
from index.bundle.registry import Registry
from index.errors import BundleInvalid
from service.errors import BackupRefused

Report = Callable[[str, int, int | None], None]
"""Called with a step, and how many of how many pieces are done; None: their number is not known."""

_PARTIAL: Final = ".partial-"
_WRITABLE: Final = 0o600  # a registry shares read-only files by hard links, and a backup must share none


def copy_registry(registry: Registry, target: Path, report: Report) -> tuple[Pointer, dict[str, str]]:
    """Copy all published bundles and the pointer; bundles that an interrupted backup copied are not copied again.

    Args:
        registry: a local one. Services and publishers may use it meanwhile.
        target: directory of the copies.
        report: called for each bundle.

    Returns:
        The pointer of the copy and the content hash of each bundle by id.

    Raises:
        BackupRefused: nothing is published, or a bundle is damaged.
        OSError: a file cannot be written.
    """
    target.mkdir(exist_ok=True)
    for leftover in target.glob(f"{_PARTIAL}*"):
        remove_directory(leftover)
    pointer = Pointer.read(registry.pointer)
    present = [info.id for info in registry.list() if info.published]
    copied: dict[str, str] = {}
    for number, name in enumerate(present):
        report("bundles", number, len(present))
        content = _copy_bundle(registry.root / name, target)
        if content is not None:
            copied[name] = content
    if pointer.current is None or pointer.current not in copied:
        raise BackupRefused(
            f"{registry.root}: has no current bundle; publish one, or leave the registry out with --no-registry"
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


def _copy_bundle(bundle: Path, target: Path) -> str | None:
    """Copy one bundle; returns its content hash, None if it was pruned meanwhile."""
    final, partial = target / bundle.name, target / f"{_PARTIAL}{bundle.name}"
    try:
        manifest = Manifest.read(bundle)
        if final.is_dir():
            if _is_intact(final, manifest):
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


def _is_intact(copy: Path, wanted: Manifest) -> bool:
    try:
        verify_files(copy, wanted, "full")
        return Manifest.read(copy).content == wanted.content
    except BundleInvalid:
        return False
