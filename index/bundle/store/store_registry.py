"""Manages a registry in an object store: published bundles and the pointer to the current one.

``bundles/<place>/`` holds the objects of one publication, ``pointer.json`` says which bundles are published and where
(:mod:`index.bundle.store.store_pointer`). Objects are written first. The pointer is written last, on the condition that
it is still the one that was read: of two writers the slower one reads it again and goes on from there. Nothing is
decided by a listing, which may be late. Readers get local copies (:mod:`index.bundle.store.bundle_cache`).
"""

import builtins
import hashlib
import threading
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from index.bundle.bundle import Bundle
from index.bundle.integrity import verify_files
from index.bundle.manifest import LARGEST_MANIFEST, MANIFEST_FILE, FileEntry, Manifest
from index.bundle.pointer import POINTER_FILE
from index.bundle.registry import BundleInfo, bundle_info, check_gate
from index.bundle.store.bundle_cache import BUNDLES, DEFAULT_LIMIT_BYTES, BundleCache, default_cache, never
from index.bundle.store.object_store import BLOCK_BYTES, ObjectChanged, ObjectStore, StoredObject
from index.bundle.store.opening import StoreUrl
from index.bundle.store.store_pointer import LARGEST_POINTER, StorePointer, bundle_of, new_place
from index.errors import BundleInvalid, BundleNotFound, RegistryError, StoreUnavailable

_MOST_TRIES: Final = 20
_POLL_PATIENCE_S: Final = 5
_ABANDONED_AFTER: Final = timedelta(days=7)
"""Age of objects that no pointer names; younger ones may belong to a publication in progress."""


class StoreRegistry:
    """Published bundles below the URL of an object store.

    Args:
        url: ``s3://bucket/prefix``.
        cache: directory for local copies; None: below XDG_CACHE_HOME.
        cache_bytes: most bytes of the local copies.

    Attributes:
        location: the URL.
        save_error: why the pointer that was read last cannot be saved beside the copies; None: it is saved. Only a
            start while the store is gone needs it.

    Raises:
        RegistryError: the URL has another form, or the extra is missing.
    """

    def __init__(self, url: str, cache: Path | None = None, cache_bytes: int | None = None) -> None:
        if not StoreUrl.parse(url).prefix:
            raise RegistryError(f"{url!r}: a registry needs a prefix of its own: s3://bucket/prefix")
        self._store = ObjectStore(url)
        self._polled = ObjectStore(url, patience_s=_POLL_PATIENCE_S)
        self.location = self._store.url
        limit = DEFAULT_LIMIT_BYTES if cache_bytes is None else cache_bytes
        self._cache = BundleCache(self._store, default_cache() if cache is None else cache, limit)
        self._known: tuple[StorePointer, str] | None = None
        self._saved = True
        self._reading = threading.Lock()
        self.save_error: str | None = None

    @property
    def root(self) -> Path:
        """Directory of the local copies."""
        return self._cache.root

    def publish(
        self, bundle: Path, *, force: bool = False, progress: Callable[[str, float], None] | None = None
    ) -> str:
        """Verify a bundle, load it once, write its objects and then the pointer, so that it is the current bundle.

        An intact bundle that is published already is not written again.

        Args:
            bundle: the bundle's directory.
            force: publish even if a figure misses its bound; the manifest then records ``forced``.
            progress: called with a file name and the share of bytes handled, 0 … 1.

        Returns:
            The bundle's id.

        Raises:
            BundleNotFound: the directory does not exist.
            BundleInvalid: a file is missing, altered, or does not fit the others.
            GateRefused: a figure misses its bound and ``force`` is False.
            StoreUnavailable: the store does not answer; the pointer is the old one.
            RegistryError: the store has no conditional writes, or the pointer breaks a rule.
        """
        manifest = check_gate(bundle, force=force)
        verify_files(bundle, manifest, "full", progress)
        Bundle.load(bundle).check_content()
        self._store.check_conditional_writes()
        written: list[str] = []

        def published(before: StorePointer) -> StorePointer:
            place = before.places.get(manifest.id)
            if place is None or not (place in written or self._is_intact(place, manifest)):
                if not written:
                    written.append(new_place(manifest.id))
                    self._write(bundle, written[0], manifest, progress)
                place = written[0]
            return before.publish(manifest.id, place)

        self._change(published)
        return manifest.id

    def check_writable(self) -> None:
        """Check before a bundle is built that it can be published here; nothing is left behind.

        Raises:
            StoreUnavailable: the store does not answer, or does not permit it.
            RegistryError: it has no conditional writes.
        """
        self._store.check_conditional_writes()

    def current(self) -> str | None:
        """The id of the current bundle; None before the first publication.

        Raises:
            StoreUnavailable: the store does not answer.
            RegistryError: the pointer breaks a rule.
        """
        return self.read_pointer().pointer.current

    def read_pointer(self) -> StorePointer:
        """The pointer as it is now, with a short patience and without sending it again where it is unchanged.

        Several threads may read at once. It is saved for a start without the store, as far as the disk permits.

        Raises:
            StoreUnavailable: the store does not answer.
            RegistryError: the pointer breaks a rule.
        """
        known = self._known
        found = self._polled.read(POINTER_FILE, limit=LARGEST_POINTER, known=None if known is None else known[1])
        if found is None:
            if known is not None or self._cache.last_pointer() is not None:
                raise StoreUnavailable(f"{self.location}/{POINTER_FILE}: is gone; what it named before is used")
            return StorePointer()
        if found.content is None and known is not None:
            with self._reading:
                self._save()
                return (self._known or known)[0]
        pointer = StorePointer.parse(found.content or b"", f"{self.location}/{POINTER_FILE}")
        with self._reading:
            latest = self._known
            if latest is not None and pointer.serial < latest[0].serial:
                if latest is not known:
                    return latest[0]  # another thread asked later and was answered first
                raise StoreUnavailable(f"{self.location}/{POINTER_FILE}: is older than the one that was read before")
            self._known, self._saved = (pointer, found.version), False
            self._save()
        return pointer

    def _save(self) -> None:
        """Save the pointer unless it is saved; a disk that is full or read-only is no reason not to use it."""
        if self._saved or self._known is None:
            return
        try:
            self._cache.remember(self._known[0])
        except RegistryError as error:
            self.save_error = self.save_error or str(error)  # the first one: it tells the free space, which changes
        else:
            self._saved, self.save_error = True, None

    def last_pointer(self) -> StorePointer | None:
        """The pointer that this machine read last, also while the store is gone; None: it never read one."""
        return self._known[0] if self._known is not None else self._cache.last_pointer()

    def has_copy(self, bundle_id: str) -> bool:
        """Whether there is a whole local copy of a bundle."""
        return self._cache.has(bundle_id)

    def drop_if_damaged(self, bundle_id: str) -> bool:
        """Remove the local copy of a bundle if a file was altered; the next use downloads it again."""
        return self._cache.drop_if_damaged(bundle_id)

    def path(self, bundle_id: str) -> Path:
        """Directory of the local copy of a bundle, which is downloaded where there is none.

        Raises:
            BundleNotFound: the registry has no bundle of this id.
            StoreUnavailable: it cannot be downloaded now.
        """
        return self.download(bundle_id)

    def download(
        self,
        bundle_id: str,
        *,
        keep: Collection[str] = (),
        stop: Callable[[], bool] = never,
        progress: Callable[[int], None] | None = None,
    ) -> Path:
        """As :meth:`path`; see :meth:`index.bundle.store.bundle_cache.BundleCache.download`."""
        if self._cache.has(bundle_id):
            return self._cache.use(bundle_id)
        pointer = self.read_pointer()
        place = pointer.places.get(bundle_id)
        if place is None:
            raise BundleNotFound(f"{self.location}: no bundle {bundle_id[:60]!r}; see `vlm2rec index list`")
        protected = {*keep, *([] if pointer.pointer.current is None else [pointer.pointer.current])}
        return self._cache.download(place, bundle_id, keep=protected, stop=stop, progress=progress)

    def list(self) -> list[BundleInfo]:
        """All bundles in the order of their last publication, oldest first; unreadable ones have a ``problem``.

        Raises:
            StoreUnavailable: the store does not answer.
            RegistryError: the pointer breaks a rule.
        """
        pointer = self.read_pointer()
        found = []
        for bundle_id in pointer.pointer.order(pointer.ids):
            try:
                manifest: Manifest | str = self._manifest(pointer.places[bundle_id])
            except BundleInvalid as error:
                manifest = str(error)
            found.append(bundle_info(bundle_id, manifest, current=bundle_id == pointer.pointer.current))
        return found

    def earlier(self, bundle_id: str) -> builtins.list[str]:
        """Ids of the bundles to fall back to from a bundle, the best first; as they were known last.

        Raises:
            RegistryError: the pointer was never read and cannot be read now.
        """
        pointer = self.last_pointer() or self.read_pointer()
        return pointer.pointer.before(bundle_id, pointer.ids)

    def rollback(self, to: str | None = None) -> str:
        """Make another bundle the current one and return its id; see :meth:`index.bundle.registry.Registry.rollback`.

        Raises:
            RegistryError: there is no earlier bundle, or ``to`` is the current one.
            BundleNotFound: the registry has no bundle ``to``.
            BundleInvalid: an object of the bundle is missing or of another size; the pointer stays unchanged.
            StoreUnavailable: the store does not answer.
        """
        self._store.check_conditional_writes()
        chosen: list[str] = []

        def rolled_back(before: StorePointer) -> StorePointer:
            target = chosen[0] if chosen else (to or before.pointer.rollback_target(before.ids))
            if target is None:
                raise RegistryError(f"{self.location}: there is no earlier bundle to go back to; publish one")
            if to is not None and to == before.pointer.current:
                raise RegistryError(f"{self.location}: {to} is the current bundle already; name another one")
            place = before.places.get(target)
            if place is None:
                raise BundleNotFound(f"{self.location}: no bundle {target[:60]!r}; see `vlm2rec index list`")
            self._check_sizes(place, self._manifest(place))
            chosen[:] = [target]
            return before.roll_back(target)

        self._change(rolled_back)
        return chosen[0]

    def prune(self, keep: int, *, spare: Collection[str] = ()) -> builtins.list[str]:
        """Delete all but the most recently published bundles and return the deleted ids.

        The current bundle and the target of the next rollback are always kept. Objects that no pointer names are
        deleted a week after their writing.

        Args:
            keep: number of most recently published bundles to keep, at least 1.
            spare: further ids to keep, such as pinned bundles.

        Raises:
            RegistryError: ``keep`` is below 1.
            StoreUnavailable: the store does not answer; the pointer names whole bundles in any case.
        """
        if keep < 1:
            raise RegistryError(f"keep must be at least 1, got {keep}")
        self._store.check_conditional_writes()
        deleted: dict[str, str] = {}

        def pruned(before: StorePointer) -> StorePointer:
            kept = {before.pointer.current, before.pointer.rollback_target(before.ids), *spare}
            old = [name for name in before.pointer.order(before.ids)[:-keep] if name not in kept]
            deleted.clear()
            deleted.update({name: before.places[name] for name in old})
            return before.without(old)

        pointer = self._change(pruned)
        named = set(pointer.places.values())
        for place in {*deleted.values(), *self._abandoned(named)}:
            self._store.delete([found.key for found in self._store.objects(f"{BUNDLES}/{place}")])
        return list(deleted)

    def load_verified(self, bundle_id: str) -> Bundle:
        """Download every byte of a bundle, hash it and load it; the copy is deleted.

        Raises:
            BundleNotFound: the registry has no bundle of this id.
            BundleInvalid: an object is missing, altered, or does not fit the others.
            StoreUnavailable: the store does not answer.
        """
        place = self.read_pointer().places.get(bundle_id)
        if place is None:
            raise BundleNotFound(f"{self.location}: no bundle {bundle_id[:60]!r}; see `vlm2rec index list`")
        manifest = self._manifest(place)
        self._check_sizes(place, manifest)
        with self._cache.aside() as temporary:
            copy = BundleCache(self._store, temporary, sum(entry.size for entry in manifest.files.values()))
            try:
                return Bundle.load(copy.download(place, bundle_id), verify="full")
            except StoreUnavailable as error:
                raise BundleInvalid(str(error)) from error

    def _change(self, change: Callable[[StorePointer], StorePointer]) -> StorePointer:
        """Apply a change to the pointer as it is now; again from the start where another writer was faster."""
        for _ in range(_MOST_TRIES):
            found = self._store.read(POINTER_FILE, limit=LARGEST_POINTER)
            before = StorePointer()
            if found is not None:
                before = StorePointer.parse(found.content or b"", f"{self.location}/{POINTER_FILE}")
            after = change(before)
            if after == before:
                return after
            after = after.numbered()
            try:
                self._store.replace(POINTER_FILE, after.to_json(), None if found is None else found.version)
            except ObjectChanged:
                continue
            return after
        raise StoreUnavailable(f"{self.location}: other writers change the pointer all the time; try again later")

    def _write(
        self, bundle: Path, place: str, manifest: Manifest, progress: Callable[[str, float], None] | None
    ) -> None:
        total, done = sum(entry.size for entry in manifest.files.values()) or 1, 0
        for name, entry in manifest.files.items():
            self._store.write(f"{BUNDLES}/{place}/{name}", bundle / name)
            done += entry.size
            if progress is not None:
                progress(f"upload {name}", done / total)
        self._store.write(f"{BUNDLES}/{place}/{MANIFEST_FILE}", manifest.to_json().encode())
        self._check_sizes(place, manifest)

    def _is_intact(self, place: str, wanted: Manifest) -> bool:
        """Whether every object of a place has the content that its manifest says; reads all of them."""
        try:
            manifest = self._manifest(place)
            self._check_sizes(place, manifest)
            whole = all(
                self._sha256(f"{BUNDLES}/{place}/{name}", entry) == entry.sha256
                for name, entry in manifest.files.items()
            )
        except (BundleInvalid, FileNotFoundError):
            return False
        return whole and manifest.content == wanted.content

    def _sha256(self, key: str, entry: FileEntry) -> str:
        digest = hashlib.sha256()
        for start in range(0, entry.size, BLOCK_BYTES):
            digest.update(self._store.read_range(key, start, min(BLOCK_BYTES, entry.size - start)))
        return digest.hexdigest()

    def _manifest(self, place: str) -> Manifest:
        source = f"{self.location}/{BUNDLES}/{place}"
        found = self._store.read(f"{BUNDLES}/{place}/{MANIFEST_FILE}", limit=LARGEST_MANIFEST)
        if found is None or found.content is None:
            raise BundleInvalid(f"{source}: the manifest is missing; publish the bundle again")
        manifest = Manifest.parse(found.content, f"{source}/{MANIFEST_FILE}")
        if manifest.id != bundle_of(place):
            raise BundleInvalid(f"{source}: its manifest is that of {manifest.id}; publish the bundle again")
        return manifest

    def _check_sizes(self, place: str, manifest: Manifest) -> None:
        """Check that every object of a place is there and has its size, without relying on a listing."""
        for name, entry in manifest.files.items():
            found = self._store.head(f"{BUNDLES}/{place}/{name}")
            if found is None or found.size != entry.size:
                has = "is missing" if found is None else f"has {found.size} bytes, the manifest says {entry.size}"
                raise BundleInvalid(f"{self.location}/{BUNDLES}/{place}/{name}: {has}; publish the bundle again")

    def _abandoned(self, named: Collection[str]) -> builtins.list[str]:
        """Places that no pointer names and to which nothing was written for a week."""
        until = datetime.now(UTC) - _ABANDONED_AFTER
        found = []
        for place in self._store.names(BUNDLES):
            if bundle_of(place) is not None and place not in named:
                objects: builtins.list[StoredObject] = self._store.objects(f"{BUNDLES}/{place}")
                if all(entry.modified < until for entry in objects):
                    found.append(place)
        return found
