"""Registry: published bundles in one directory, and the pointer to the one that serves.

``<id>/`` are the bundles, ``<id>.stamp.json`` vouches for their files, ``pointer.json`` names the current bundle, those
before it and the order in which all were published. Every change is prepared aside and takes effect by one atomic
rename, so whoever is killed at any moment leaves the old state or the new. Writers take turns by a lock that the kernel
drops with its process; readers need none.
"""

import builtins
import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from index.bound_check import BoundCheck
from index.bundle.bundle import Bundle
from index.bundle.integrity import stamp_path, sync_directory, sync_file, verify_files, write_stamp
from index.bundle.manifest import MANIFEST_FILE, PAGE_FILE, Manifest, is_bundle_id
from index.bundle.permissions import READ_ONLY, allow_removal, is_read_only, make_read_only, remove_directory
from index.bundle.pointer import POINTER_FILE, Pointer
from index.errors import BundleInvalid, BundleNotFound, GateRefused, RegistryError
from index.machine.disk import explain
from index.machine.locks import file_lock

_LOCK_FILE = ".lock"
_ASIDE = ".aside-"


@dataclass(frozen=True)
class BundleInfo:
    """One published bundle.

    Attributes:
        id: its name.
        path: its directory.
        current: whether the pointer names it.
        published: whether the pointer ever named it, as far as that is recorded.
        created: when it was built; None if its manifest cannot be read.
        items: rows of its catalogue.
        size: bytes of all its files.
        recall: recall by kind of query.
        forced: published although a bound was missed.
        shortfalls: the bounds that it misses.
        bounds: how many figures are held to a bound.
        problem: what is wrong with its manifest, None if nothing is.
    """

    id: str
    path: Path
    current: bool
    published: bool = True
    created: datetime | None = None
    items: int = 0
    size: int = 0
    recall: dict[str, float] | None = None
    forced: bool = False
    shortfalls: tuple[BoundCheck, ...] = ()
    bounds: int = 0
    problem: str | None = None


class Registry:
    """Published bundles under one directory.

    Args:
        root: a directory, as a path or a ``file://`` URL; made by the first publish.

    Raises:
        RegistryError: ``root`` is a URL of another protocol.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = _local(root)

    @property
    def pointer(self) -> Path:
        """The pointer's file; it is replaced, never written to, so its inode and time change with every move."""
        return self.root / POINTER_FILE

    def publish(
        self, bundle: Path, *, force: bool = False, progress: Callable[[str, float], None] | None = None
    ) -> str:
        """Copy a bundle in, verify every byte of the copy, load it once, and point to it.

        Files are hard-linked where they are read-only and the file system allows it, else copied; all of them are
        read-only afterwards. A bundle that is there already and whole is only pointed to.

        Args:
            bundle: the bundle's directory.
            force: publish although its recall is below its own bound; the manifest then says so.
            progress: called with a file name and the share of bytes verified.

        Returns:
            The bundle's id.

        Raises:
            BundleNotFound: there is no such directory.
            BundleInvalid: a file is missing, altered, or does not fit the others.
            GateRefused: a figure misses its bound and ``force`` is off; figures are held to the bounds here, whatever
                the manifest says of shortfalls.
            RegistryError: the directory cannot be written.
        """
        if not bundle.is_dir():
            raise BundleNotFound(f"{bundle}: there is no bundle; build one with `vlm2rec index build`")
        manifest = Manifest.read(bundle)
        short = manifest.shortfalls
        if short and not force:
            raise GateRefused(
                f"{bundle}: these figures miss their bounds: {'; '.join(map(str, short))}. See "
                f"{bundle / PAGE_FILE}; mend the cause and build again, or publish with --force",
                shortfalls=short,
            )
        with self._writing():
            if not self._has_whole(manifest, progress):
                self._copy_in(bundle, manifest.model_copy(update={"forced": bool(short)}), progress)
            pointer = Pointer.read(self.pointer)
            moved = pointer.publish(manifest.id, self._ids())
            if moved != pointer:
                moved.write(self.pointer)
        return manifest.id

    def current(self) -> str | None:
        """The id of the bundle that serves, None before the first publish.

        Raises:
            RegistryError: the pointer cannot be read.
        """
        return Pointer.read(self.pointer).current

    def path(self, bundle_id: str) -> Path:
        """The directory of a published bundle.

        Raises:
            BundleNotFound: no such id here.
        """
        if not is_bundle_id(bundle_id) or not (self.root / bundle_id).is_dir():
            raise BundleNotFound(f"{self.root}: no bundle {bundle_id[:60]!r}; see `vlm2rec index list`")
        return self.root / bundle_id

    def list(self) -> list[BundleInfo]:
        """All bundles in the order in which they were last published; unreadable ones with their problem.

        A bundle that was never published comes before all others: a killed publish left it, or somebody copied it here.

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
        """Ids of the bundles to go back to from a bundle, the best first.

        First those before it in the pointer's history, then the others that were published before it, the last first. A
        bundle that was never published is not among them. For a bundle that is not here, names tell the order.

        Raises:
            RegistryError: the registry cannot be read.
        """
        return Pointer.read(self.pointer).before(bundle_id, self._ids())

    def rollback(self, to: str | None = None) -> str:
        """Point back to an earlier bundle and give its id.

        Args:
            to: a published bundle, earlier or later; None for the one before the current, so that calling it again
                goes further back.

        Raises:
            RegistryError: there is no earlier bundle left, or ``to`` is the current one.
            BundleNotFound: ``to`` is not published here.
            BundleInvalid: the bundle is damaged; the pointer stays.
        """
        with self._writing():
            pointer, ids = Pointer.read(self.pointer), self._ids()
            left = [item for item in pointer.previous if item in ids]
            if to is None and not left:
                raise RegistryError(f"{self.root}: there is no earlier bundle to go back to; publish one")
            if to is not None and to == pointer.current:
                raise RegistryError(f"{self.root}: {to} is the current bundle already; name another one")
            path = self.path(left[-1] if to is None else to)
            verify_files(path, Manifest.read(path))
            pointer.roll_back(path.name, ids).write(self.pointer)
        return path.name

    def prune(self, keep: int, *, spare: Collection[str] = ()) -> builtins.list[str]:
        """Delete all but the bundles that were published last; gives the ids that went.

        The current one stays, and the one that a rollback goes back to. A bundle that was never published counts as
        older than all others. A service that still has one of them open keeps its files until it closes them.

        Args:
            keep: how many of those published last stay, at least 1.
            spare: ids that stay as well, such as those that are pinned.

        Raises:
            RegistryError: ``keep`` is below 1, or the directory cannot be written.
        """
        if keep < 1:
            raise RegistryError(f"keep must be at least 1, got {keep}")
        with self._writing():
            pointer, ids = Pointer.read(self.pointer), self._ids()
            back = [item for item in pointer.previous if item in ids]
            stay = {pointer.current, *back[-1:], *spare}
            gone = [item for item in pointer.order(ids)[:-keep] if item not in stay]
            for item in gone:
                allow_removal(self.root / item)  # before the pointer forgets them
            if gone:
                pointer.without(gone, ids).write(self.pointer)
            for item in gone:
                aside = self._aside()
                (self.root / item).rename(aside)
                stamp_path(self.root / item).unlink(missing_ok=True)
                remove_directory(aside)
        return gone

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time; clears what dead writers left."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with file_lock(self.root / _LOCK_FILE, wait=True):
                for leftover in (*self.root.glob(f"{_ASIDE}*"), *self.root.glob(".*.part")):
                    if leftover.is_dir():
                        remove_directory(leftover)
                    else:
                        leftover.unlink(missing_ok=True)
                yield
        except OSError as error:
            raise RegistryError(explain(error, self.root, what="the registry")) from error

    def _aside(self) -> Path:
        return self.root / f"{_ASIDE}{uuid.uuid4().hex}"

    def _has_whole(self, wanted: Manifest, progress: Callable[[str, float], None] | None) -> bool:
        """Whether a bundle is here and whole; a damaged one, or another under its name, is moved away."""
        path = self.root / wanted.id
        if not path.is_dir():
            return False
        try:
            manifest = Manifest.read(path)
            verify_files(path, manifest, "full", progress)
            whole = manifest.content == wanted.content
        except BundleInvalid:
            whole = False
        if whole:
            make_read_only(path / name for name in (*manifest.files, MANIFEST_FILE))
            write_stamp(path, manifest)
            return True
        stamp_path(path).unlink(missing_ok=True)
        aside = self._aside()
        path.rename(aside)
        remove_directory(aside)
        return False

    def _copy_in(self, bundle: Path, manifest: Manifest, progress: Callable[[str, float], None] | None) -> None:
        aside = self._aside()
        try:
            aside.mkdir()
            for name in manifest.files:
                _link_or_copy(bundle / name, aside / name)
            (aside / MANIFEST_FILE).write_text(manifest.to_json())
            (aside / MANIFEST_FILE).chmod(READ_ONLY)
            for path in (*(aside / name for name in manifest.files), aside / MANIFEST_FILE):
                sync_file(path)
            sync_directory(aside)
            verify_files(aside, manifest, "full", progress)
            write_stamp(aside, manifest)
            Bundle.load(aside).check_vectors()  # every file fits the others, and the encoder and the index open
            final = self.root / manifest.id
            aside.rename(final)
            sync_directory(self.root)
            write_stamp(final, manifest)
        finally:
            stamp_path(aside).unlink(missing_ok=True)
            shutil.rmtree(aside, ignore_errors=True)

    def _ids(self) -> builtins.list[str]:
        try:
            return sorted(path.name for path in self.root.iterdir() if is_bundle_id(path.name) and path.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RegistryError(f"{self.root}: the registry cannot be read ({error})") from error


def _describe(path: Path, *, current: bool, published: bool) -> BundleInfo:
    try:
        manifest = Manifest.read(path)
    except BundleInvalid as error:
        return BundleInfo(path.name, path, current, published, problem=str(error))
    if manifest.id != path.name:
        return BundleInfo(path.name, path, current, published, problem=f"its manifest is that of {manifest.id}")
    return BundleInfo(
        path.name,
        path,
        current,
        published,
        created=manifest.created,
        items=manifest.items,
        size=sum(entry.size for entry in manifest.files.values()),
        recall=manifest.index.recall,
        forced=manifest.forced,
        shortfalls=manifest.shortfalls,
        bounds=len(manifest.checks),
    )


def _local(root: str | Path) -> Path:
    """The local directory that a path or URL names."""
    if isinstance(root, Path):
        return root
    if get_protocol(root) not in LocalFileSystem.protocol or "::" in root:  # :: chains file systems
        raise RegistryError(
            f"{root!r}: object stores are not supported yet; a registry must be a local path or a file:// URL"
        )
    return Path(url_to_fs(root)[1])


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() or not source.is_file():
        raise BundleInvalid(f"{source}: the file is missing or no regular file; build the bundle again")
    if is_read_only(source):  # a link to a file that somebody may write to would let him write into the registry
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES}:
                raise
        else:
            return
    shutil.copyfile(source, target)
    target.chmod(READ_ONLY)
