"""Manages the registry: a directory of published bundles and the pointer to the current one.

``<id>/`` are the bundles, ``<id>.stamp.json`` are their stamps (:mod:`index.bundle.integrity`), ``pointer.json`` is the
pointer (:mod:`index.bundle.pointer`). Every change is prepared in a temporary directory and takes effect by one atomic
rename, so a process killed at any moment leaves either the old or the new state. Writers hold a lock, which the kernel
releases when the process ends; readers need none.
"""

import builtins
import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from index.bound_check import BoundCheck
from index.bundle.bundle import Bundle
from index.bundle.integrity import stamp_path, sync_directory, sync_file, verify_files, write_stamp
from index.bundle.manifest import MANIFEST_FILE, PAGE_FILE, Manifest, is_bundle_id
from index.bundle.permissions import READ_ONLY, allow_removal, is_read_only, make_read_only, remove_directory
from index.bundle.pointer import POINTER_FILE, Pointer
from index.bundle.unused_modalities import UnusedModality
from index.errors import BundleInvalid, BundleNotFound, GateRefused, RegistryError, may_pass
from index.machine.disk import describe_disk_error
from index.machine.locks import file_lock

_LOCK_FILE = ".lock"
_TEMPORARY_PREFIX = ".aside-"


@dataclass(frozen=True)
class BundleInfo:
    """One bundle of the registry.

    Attributes:
        id: name of the bundle.
        current: whether it is the current bundle.
        published: whether it was ever published, as far as the pointer records it.
        created: time of the build; None if the manifest cannot be read.
        items: number of rows of its catalogue.
        size: bytes of all its files.
        recall: recall@k by kind of query, 0 … 1.
        forced: whether it was published although a figure misses its bound.
        shortfalls: the failed checks.
        bounds: number of figures that have a bound.
        lists: most neighbours of an item in each item-to-item list, by its name; empty without lists.
        refitted: whether its encoder was refitted on every event, so that its accuracy figures are of another one.
        warnings: modalities that most items have but that hardly count.
        problem: what is wrong with the manifest; None if it is valid.
        path: its directory; None in an object store.
    """

    id: str
    current: bool
    published: bool = True
    created: datetime | None = None
    items: int = 0
    size: int = 0
    recall: dict[str, float] | None = None
    forced: bool = False
    shortfalls: tuple[BoundCheck, ...] = ()
    bounds: int = 0
    lists: Mapping[str, int] = field(default_factory=dict)
    refitted: bool = False
    warnings: tuple[UnusedModality, ...] = ()
    problem: str | None = None
    path: Path | None = None


class Registry:
    """Published bundles under one directory.

    Args:
        root: a directory, as a path or a ``file://`` URL; the first publication creates it.

    Raises:
        RegistryError: ``root`` is a URL of another protocol.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = _local(root)

    @property
    def location(self) -> str:
        """The directory, for messages."""
        return str(self.root)

    @property
    def pointer(self) -> Path:
        """Path of the pointer's file, which is replaced on every change, so its inode and time change."""
        return self.root / POINTER_FILE

    def publish(
        self, bundle: Path, *, force: bool = False, progress: Callable[[str, float], None] | None = None
    ) -> str:
        """Copy a bundle into the registry, verify every byte, load it once, and make it the current bundle.

        Read-only files are hard-linked if the file system allows it, others are copied; all are read-only afterwards.
        An intact bundle that is in the registry already is not copied again.

        Args:
            bundle: the bundle's directory.
            force: publish even if a figure misses its bound; the manifest then records ``forced``.
            progress: called with a file name and the share of bytes verified, 0 … 1.

        Returns:
            The bundle's id.

        Raises:
            BundleNotFound: the directory does not exist.
            BundleInvalid: a file is missing, altered, or does not fit the others.
            GateRefused: a figure misses its bound and ``force`` is False; the figures are checked here again, the
                manifest's shortfalls are ignored.
            RegistryError: the directory cannot be written.
        """
        manifest = check_gate(bundle, force=force)
        with self._writing():
            if not self._has_intact(manifest, progress):
                self._copy_in(bundle, manifest, progress)
            pointer = Pointer.read(self.pointer)
            changed = pointer.publish(manifest.id, self._ids())
            if changed != pointer:
                changed.write(self.pointer)
        return manifest.id

    def current(self) -> str | None:
        """The id of the current bundle; None before the first publication.

        Raises:
            RegistryError: the pointer cannot be read.
        """
        return Pointer.read(self.pointer).current

    def path(self, bundle_id: str) -> Path:
        """The directory of a bundle of the registry.

        Raises:
            BundleNotFound: the registry has no bundle of this id.
        """
        if not is_bundle_id(bundle_id) or not (self.root / bundle_id).is_dir():
            raise BundleNotFound(f"{self.root}: no bundle {bundle_id[:60]!r}; see `vlm2rec index list`")
        return self.root / bundle_id

    def list(self) -> list[BundleInfo]:
        """All bundles in the order of their last publication, oldest first; unreadable ones have a ``problem``.

        Never published bundles come first: a publication was killed, or the directory was copied here.

        Raises:
            RegistryError: the pointer cannot be read.
        """
        pointer, ids = Pointer.read(self.pointer), self._ids()
        never = pointer.never_published(ids)
        return [
            _describe(self.root / name, current=name == pointer.current, published=name not in never)
            for name in pointer.order(ids)
        ]

    def earlier(self, bundle_id: str) -> builtins.list[str]:
        """Ids of the bundles to fall back to from a bundle, the best first.

        First come the bundles before it in the rollback history, then others that were published before it, newest
        first. Never published bundles are excluded. For a bundle that is not in the registry, names decide the order.

        Raises:
            RegistryError: the registry cannot be read.
        """
        return Pointer.read(self.pointer).before(bundle_id, self._ids())

    def load_verified(self, bundle_id: str) -> Bundle:
        """Hash every file of a bundle and load it.

        Raises:
            BundleNotFound: the registry has no bundle of this id.
            BundleInvalid: a file is missing, altered, or does not fit the others.
        """
        return Bundle.load(self.path(bundle_id), verify="full")

    def rollback(self, to: str | None = None) -> str:
        """Make another bundle the current one and return its id.

        Args:
            to: id of a bundle, earlier or later; None for the bundle before the current one, so repeated calls go
                further back.

        Raises:
            RegistryError: there is no earlier bundle, or ``to`` is the current one.
            BundleNotFound: the registry has no bundle ``to``.
            BundleInvalid: the bundle is damaged; the pointer stays unchanged.
        """
        with self._writing():
            pointer, ids = Pointer.read(self.pointer), self._ids()
            target = pointer.rollback_target(ids) if to is None else to
            if target is None:
                raise RegistryError(f"{self.root}: there is no earlier bundle to go back to; publish one")
            if to is not None and to == pointer.current:
                raise RegistryError(f"{self.root}: {to} is the current bundle already; name another one")
            path = self.path(target)
            verify_files(path, Manifest.read(path))
            pointer.roll_back(path.name, ids).write(self.pointer)
        return path.name

    def prune(self, keep: int, *, spare: Collection[str] = ()) -> builtins.list[str]:
        """Delete all but the most recently published bundles and return the deleted ids.

        The current bundle and the target of the next rollback are always kept. Never published bundles count as the
        oldest. A service that has a deleted bundle loaded keeps its files until it closes them.

        Args:
            keep: number of most recently published bundles to keep, at least 1.
            spare: further ids to keep, such as pinned bundles.

        Raises:
            RegistryError: ``keep`` is below 1, or the directory cannot be written.
        """
        if keep < 1:
            raise RegistryError(f"keep must be at least 1, got {keep}")
        with self._writing():
            pointer, ids = Pointer.read(self.pointer), self._ids()
            kept = {pointer.current, pointer.rollback_target(ids), *spare}
            deleted = [item for item in pointer.order(ids)[:-keep] if item not in kept]
            for item in deleted:
                allow_removal(self.root / item)  # may fail, so before the pointer changes
            if deleted:
                pointer.without(deleted, ids).write(self.pointer)
            for item in deleted:
                (self.root / item).rename(temporary := self._temporary_directory())
                stamp_path(self.root / item).unlink(missing_ok=True)
                remove_directory(temporary)
        return deleted

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the writers' lock; removes temporary files of killed writers."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with file_lock(self.root / _LOCK_FILE, wait=True):
                for leftover in (*self.root.glob(f"{_TEMPORARY_PREFIX}*"), *self.root.glob(".*.part")):
                    if leftover.is_dir():
                        remove_directory(leftover)
                    else:
                        leftover.unlink(missing_ok=True)
                yield
        except OSError as error:
            raise RegistryError(describe_disk_error(error, self.root, what="the registry")) from error

    def _temporary_directory(self) -> Path:
        return self.root / f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}"

    def _has_intact(self, wanted: Manifest, progress: Callable[[str, float], None] | None) -> bool:
        """Whether the registry has an intact copy of a bundle; a damaged or different one of this id is removed."""
        path = self.root / wanted.id
        if not path.is_dir():
            return False
        try:
            manifest = Manifest.read(path)
            verify_files(path, manifest, "full", progress)
            intact = manifest.content == wanted.content
        except BundleInvalid as error:
            if may_pass(error):
                raise  # that says nothing of the bundle
            intact = False
        if intact:
            make_read_only(path / name for name in (*manifest.files, MANIFEST_FILE))
            write_stamp(path, manifest)
            return True
        stamp_path(path).unlink(missing_ok=True)
        path.rename(temporary := self._temporary_directory())
        remove_directory(temporary)
        return False

    def _copy_in(self, bundle: Path, manifest: Manifest, progress: Callable[[str, float], None] | None) -> None:
        temporary = self._temporary_directory()
        try:
            temporary.mkdir()
            for name in manifest.files:
                _link_or_copy(bundle / name, temporary / name)
            (temporary / MANIFEST_FILE).write_text(manifest.to_json())
            (temporary / MANIFEST_FILE).chmod(READ_ONLY)
            for path in (*(temporary / name for name in manifest.files), temporary / MANIFEST_FILE):
                sync_file(path)
            for directory in {(temporary / name).parent for name in manifest.files}:
                sync_directory(directory)
            verify_files(temporary, manifest, "full", progress)
            write_stamp(temporary, manifest)
            Bundle.load(temporary).check_content()  # checks that the files fit together and the encoder and index load
            final = self.root / manifest.id
            temporary.rename(final)
            sync_directory(self.root)
            write_stamp(final, manifest)
        finally:
            stamp_path(temporary).unlink(missing_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)

    def _ids(self) -> builtins.list[str]:
        try:
            return sorted(path.name for path in self.root.iterdir() if is_bundle_id(path.name) and path.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RegistryError(f"{self.root}: the registry cannot be read ({error})") from error


def check_gate(bundle: Path, *, force: bool) -> Manifest:
    """The manifest of a bundle that may be published; it records whether that is forced.

    Args:
        bundle: the bundle's directory.
        force: allow it even if a figure misses its bound.

    Raises:
        BundleNotFound: the directory does not exist.
        BundleInvalid: the manifest cannot be read.
        GateRefused: a figure misses its bound and ``force`` is False; the figures are checked here again, the
            manifest's shortfalls are ignored.
    """
    if not bundle.is_dir():
        raise BundleNotFound(f"{bundle}: there is no bundle; build one with `vlm2rec index build`")
    manifest = Manifest.read(bundle)
    short = manifest.shortfalls
    if short and not force:
        raise GateRefused(
            f"{bundle}: these figures miss their bounds: {'; '.join(map(str, short))}. See "
            f"{bundle / PAGE_FILE}; fix the cause and build again, or publish with --force",
            shortfalls=short,
        )
    return manifest.model_copy(update={"forced": bool(short)})


def _describe(path: Path, *, current: bool, published: bool) -> BundleInfo:
    try:
        manifest: Manifest | str = Manifest.read(path)
    except BundleInvalid as error:
        manifest = str(error)
    return replace(bundle_info(path.name, manifest, current=current, published=published), path=path)


def bundle_info(bundle_id: str, manifest: Manifest | str, *, current: bool, published: bool = True) -> BundleInfo:
    """What a list of bundles shows of one.

    Args:
        bundle_id: its id.
        manifest: of the bundle; a text: what is wrong with it.
        current: whether it is the current bundle.
        published: whether it was ever published.
    """
    if isinstance(manifest, Manifest) and manifest.id != bundle_id:
        manifest = f"its manifest is that of {manifest.id}"
    if isinstance(manifest, str):
        return BundleInfo(bundle_id, current, published, problem=manifest)
    return BundleInfo(
        bundle_id,
        current,
        published,
        created=manifest.created,
        items=manifest.items,
        size=sum(entry.size for entry in manifest.files.values()),
        recall=manifest.index.recall,
        forced=manifest.forced,
        shortfalls=manifest.shortfalls,
        bounds=len(manifest.checks),
        lists={} if manifest.lists is None else {part.name: part.neighbours for part in manifest.lists.lists},
        refitted=manifest.refit is not None,
        warnings=manifest.unused_modalities,
    )


def _local(root: str | Path) -> Path:
    """The local directory of a path or URL; raises RegistryError for another protocol."""
    if isinstance(root, Path):
        return root
    if ":" not in root and not root.startswith("~"):
        return Path(root).absolute()
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.utils import get_protocol

    if get_protocol(root) not in LocalFileSystem.protocol or "::" in root:  # :: chains file systems
        raise RegistryError(f"{root!r}: must be a local path, a file:// URL or an S3 URL, s3://bucket/prefix")
    return Path(url_to_fs(root)[1])


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() or not source.is_file():
        raise BundleInvalid(f"{source}: the file is missing or not a regular file; build the bundle again")
    if is_read_only(source):  # a hard link to a writable file would make the registry writable
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES}:
                raise
        else:
            return
    shutil.copyfile(source, target)
    target.chmod(READ_ONLY)
