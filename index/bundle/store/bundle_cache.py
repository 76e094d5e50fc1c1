"""Keeps whole, verified copies of a store's bundles in a local directory of bounded size.

``<id>/`` are the copies with their stamps, as in a registry that is a directory, ``pointer.json`` is the last pointer
that was read. A bundle is downloaded aside (``.download-<place>/``), each file hashed, and then renamed. A download
that breaks off is continued later at the byte where it ended. Several processes may share the directory: the files of
one bundle are downloaded by one of them at a time.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from index.bundle.integrity import (
    hash_files,
    sha256_of,
    stamp_path,
    sync_directory,
    sync_file,
    write_durably,
    write_stamp,
)
from index.bundle.manifest import LARGEST_MANIFEST, MANIFEST_FILE, FileEntry, Manifest, is_bundle_id
from index.bundle.permissions import READ_ONLY, remove_directory
from index.bundle.pointer import POINTER_FILE
from index.bundle.store.object_store import BLOCK_BYTES, ObjectStore
from index.bundle.store.store_pointer import StorePointer
from index.errors import BundleInvalid, BundleNotFound, RegistryError, StoreUnavailable, may_pass
from index.machine.disk import describe_disk_error
from index.machine.locks import directory_lock, file_lock

DEFAULT_LIMIT_BYTES: Final = 20_000 << 20
BUNDLES: Final = "bundles"
"""What the keys of all bundles begin with in a store."""

_DOWNLOAD_PREFIX: Final = ".download-"
_ASIDE_PREFIX: Final = ".verify-"
_LOCK_POLL_S: Final = 0.1


class DownloadStopped(Exception):
    """The caller stopped a download; it can be continued."""


def never() -> bool:
    """The answer of a download that is not to be stopped."""
    return False


def default_cache() -> Path:
    """The directory of all caches, unless a setting names another one."""
    place = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(place)) / "vlm2rec" / "registries"  # noqa: PTH111 - keeps the ~ without a home


class BundleCache:
    """Copies of the bundles of one store.

    Args:
        store: holds the bundles.
        directory: of all caches; that of this store is in it.
        limit_bytes: most bytes of all copies together, those in progress included.

    Attributes:
        root: directory of the copies; made by the first download.
    """

    def __init__(self, store: ObjectStore, directory: Path, limit_bytes: int) -> None:
        self._store = store
        self._limit_bytes = limit_bytes
        self.root = directory / hashlib.sha256(store.url.encode()).hexdigest()[:12]

    def has(self, bundle_id: str) -> bool:
        """Whether there is a whole copy of a bundle."""
        return is_bundle_id(bundle_id) and (self.root / bundle_id).is_dir()

    def use(self, bundle_id: str) -> Path:
        """The copy of a bundle, which counts as used now.

        Raises:
            BundleNotFound: there is none.
        """
        if not self.has(bundle_id):
            raise BundleNotFound(f"{self.root}: there is no copy of bundle {bundle_id[:60]!r}")
        with contextlib.suppress(OSError):  # a cache that may only be read still serves
            self._used_file(bundle_id).touch()
        return self.root / bundle_id

    def last_pointer(self) -> StorePointer | None:
        """The pointer as it was read last; None: never, or the copy is damaged."""
        path = self.root / POINTER_FILE
        try:
            return StorePointer.parse(path.read_bytes(), str(path))
        except (OSError, RegistryError):
            return None

    def remember(self, pointer: StorePointer) -> None:
        """Save the pointer that was read; without it a service cannot start while the store is gone.

        Raises:
            RegistryError: it cannot be written.
        """
        with self._written():
            write_durably(self.root / POINTER_FILE, pointer.to_json())

    def download(
        self,
        place: str,
        bundle_id: str,
        *,
        keep: Collection[str] = (),
        stop: Callable[[], bool] = never,
        progress: Callable[[int], None] | None = None,
    ) -> Path:
        """The copy of a bundle, downloaded first where there is none.

        Args:
            place: where its objects lie.
            bundle_id: of the bundle.
            keep: ids of copies that must stay when room is made.
            stop: asked before every block; True ends the download, which a later call continues.
            progress: called with the number of bytes that arrived.

        Raises:
            DownloadStopped: ``stop`` returned True.
            StoreUnavailable: the store does not answer, or an object is missing, too short or altered. What was
                verified stays for the next try.
            RegistryError: the bound has no room for the bundle, or the disk refuses it.
        """
        with self._written(), self._lock(f".{bundle_id}.lock", stop):
            if not self.has(bundle_id):
                aside = self.root / f"{_DOWNLOAD_PREFIX}{place}"
                aside.mkdir(exist_ok=True)
                manifest = self._manifest(place, bundle_id, aside)
                self._make_room(bundle_id, manifest, keep)
                for name, entry in manifest.files.items():
                    self._file(f"{BUNDLES}/{place}/{name}", aside / name, entry, stop, progress)
                self._finish(aside, bundle_id, manifest)
        return self.use(bundle_id)

    def drop_if_damaged(self, bundle_id: str) -> bool:
        """Remove the copy of a bundle if a file is not what its manifest says; whether it was removed.

        Raises:
            RegistryError: it cannot be removed.
        """
        copy = self.root / bundle_id
        with _opened(copy if self.has(bundle_id) else None) as before:
            if before is None:
                return False
            try:
                hash_files(copy, Manifest.read(copy), never)
            except BundleInvalid as error:
                if may_pass(error):
                    return False
                with self._written(), self._lock(".lock", never):
                    if _inode(copy) == before:  # else another process has replaced it meanwhile
                        self._remove(bundle_id)
                return True
            return False

    @contextlib.contextmanager
    def aside(self) -> Iterator[Path]:
        """A directory beside the copies for the time of the block, which no process removes to make room.

        Raises:
            RegistryError: it cannot be made.
        """
        with contextlib.ExitStack() as stack:
            with self._written(), self._lock(".lock", never):
                directory = Path(tempfile.mkdtemp(prefix=_ASIDE_PREFIX, dir=self.root))
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                stack.enter_context(directory_lock(directory))
            yield directory

    def _manifest(self, place: str, bundle_id: str, aside: Path) -> Manifest:
        key = f"{BUNDLES}/{place}/{MANIFEST_FILE}"
        found = self._store.read(key, limit=LARGEST_MANIFEST)
        if found is None or found.content is None:
            raise StoreUnavailable(f"{self._store.url}/{key}: there is no such object; publish the bundle again")
        try:
            manifest = Manifest.parse(found.content, f"{self._store.url}/{key}")
        except BundleInvalid as error:
            raise StoreUnavailable(str(error)) from error
        (aside / MANIFEST_FILE).unlink(missing_ok=True)
        (aside / MANIFEST_FILE).write_bytes(found.content)
        if manifest.id != bundle_id:
            raise StoreUnavailable(f"{self._store.url}/{key}: is that of {manifest.id}; publish the bundle again")
        return manifest

    def _file(
        self,
        key: str,
        path: Path,
        entry: FileEntry,
        stop: Callable[[], bool],
        progress: Callable[[int], None] | None,
    ) -> None:
        """Download one file from the byte where an earlier download ended, and verify its hash."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return  # verified before it got this name
        partial = path.with_name(f"{path.name}.part")
        with partial.open("ab") as file:
            if file.tell() > entry.size:
                file.truncate(0)
            while (done := file.tell()) < entry.size:
                if stop():
                    raise DownloadStopped
                try:
                    block = self._store.read_range(key, done, min(BLOCK_BYTES, entry.size - done))
                except FileNotFoundError:
                    raise StoreUnavailable(f"{self._store.url}/{key}: there is no such object yet") from None
                file.write(block)
                if progress is not None:
                    progress(len(block))
        if sha256_of(partial) != entry.sha256:
            partial.unlink()
            raise StoreUnavailable(
                f"{self._store.url}/{key}: its content is not what the manifest says (sha256); it is downloaded again. "
                "If this goes on, publish the bundle again"
            )
        partial.chmod(READ_ONLY)
        sync_file(partial)
        partial.rename(path)

    def _finish(self, aside: Path, bundle_id: str, manifest: Manifest) -> None:
        (aside / MANIFEST_FILE).chmod(READ_ONLY)
        sync_file(aside / MANIFEST_FILE)
        for directory in {(aside / name).parent for name in manifest.files}:
            sync_directory(directory)
        self._used_file(bundle_id).touch()  # before it can be seen, so that it is not the one used longest ago
        aside.rename(self.root / bundle_id)
        sync_directory(self.root)
        write_stamp(self.root / bundle_id, manifest)
        for leftover in self.root.glob(f"{_DOWNLOAD_PREFIX}{bundle_id}.*"):  # of an earlier publication of this bundle
            remove_directory(leftover)

    def _make_room(self, bundle_id: str, manifest: Manifest, keep: Collection[str]) -> None:
        """Remove broken downloads, then the copies used longest ago, until the bundle fits."""
        needed = _size_of(manifest)
        with self._lock(".lock", never):
            sizes = self._sizes(bundle_id)
            for path in sorted(sizes, key=self._order_of):
                if sum(sizes.values()) + needed <= self._limit_bytes:
                    return
                if path.name in keep or self._is_busy(path):
                    continue
                self._remove(path.name)
                del sizes[path]
            if sum(sizes.values()) + needed > self._limit_bytes:
                raise RegistryError(
                    f"{self.root}: bundle {bundle_id} has {needed:,} bytes, the copies in use {sum(sizes.values()):,}, "
                    f"and at most {self._limit_bytes:,} are allowed together; raise VLM2REC_REGISTRY_CACHE_MB"
                )

    def _sizes(self, bundle_id: str) -> dict[Path, int]:
        """Bytes of every other copy, as it is or will be when it is whole, and of what killed processes left."""
        found = [path for path in self.root.iterdir() if path.is_dir() and not path.is_symlink()]
        others = [path for path in found if bundle_id not in {path.name, _downloaded(path)}]
        return {path: _size_at(path) for path in others if not (_is_aside(path) and self._is_busy(path))}

    def _order_of(self, path: Path) -> tuple[bool, float]:
        used = self._used_file(path.name)
        try:
            return is_bundle_id(path.name), used.stat().st_mtime
        except OSError:
            return is_bundle_id(path.name), 0.0

    def _used_file(self, bundle_id: str) -> Path:
        return self.root / f".{bundle_id}.used"

    def _is_busy(self, path: Path) -> bool:
        """Whether a process downloads into a directory, has just renamed it, or verifies a bundle in it."""
        from filelock import Timeout

        try:
            if _is_aside(path):
                with directory_lock(path):
                    return False
            bundle_id = path.name if is_bundle_id(path.name) else _downloaded(path)
            if bundle_id is None:
                return False
            with file_lock(self.root / f".{bundle_id}.lock"):
                return False
        except (Timeout, BlockingIOError):
            return True
        except FileNotFoundError:  # it is gone
            return False

    def _remove(self, name: str) -> None:
        """A service that has the copy open keeps its files until it closes them."""
        aside = self.root / f"{_DOWNLOAD_PREFIX}removed-{os.getpid()}-{time.monotonic_ns()}"
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            (self.root / name).rename(aside)
        for beside in (
            stamp_path(self.root / name),
            self._used_file(name),
        ):  # a process may wait for its lock
            beside.unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            yield
        except OSError as error:
            raise RegistryError(describe_disk_error(error, self.root, what="the copies of bundles")) from error

    @contextlib.contextmanager
    def _lock(self, name: str, stop: Callable[[], bool]) -> Iterator[None]:
        from filelock import Timeout

        lock = file_lock(self.root / name)
        while True:
            try:
                lock.acquire()
                break
            except Timeout:
                if stop():
                    raise DownloadStopped from None
                time.sleep(_LOCK_POLL_S)
        try:
            yield
        finally:
            lock.release()


def _downloaded(path: Path) -> str | None:
    """The id of the bundle whose download a directory holds."""
    name = path.name.removeprefix(_DOWNLOAD_PREFIX).rpartition(".")[0]
    return name if path.name.startswith(_DOWNLOAD_PREFIX) and is_bundle_id(name) else None


def _size_of(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())


def _size_at(path: Path) -> int:
    try:
        return _size_of(Manifest.read(path))
    except BundleInvalid:
        found = 0
        for folder, _, names in os.walk(path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # another process removes it
                    found += (Path(folder) / name).lstat().st_size
        return found


def _is_aside(path: Path) -> bool:
    return path.name.startswith(_ASIDE_PREFIX)


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[int | None]:
    """The number of a directory, which no other gets while the block lasts; None: there is no such directory."""
    try:
        descriptor = None if path is None else os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        descriptor = None
    try:
        yield None if descriptor is None else os.fstat(descriptor).st_ino
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
