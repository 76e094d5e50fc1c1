"""Loads, activates and frees bundles; at most two are in memory: the active one and the one before it."""

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from time import monotonic
from typing import Final, TypeVar

from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from index.bundle.mapped_files import MappedFiles
from index.errors import BundleInvalid
from service.bundles.active_bundle import ActiveBundle
from service.bundles.comparison import ComparedBundle, Comparison, ShadowBounds, ask_here
from service.bundles.loader import BundleLoader, Identity
from service.bundles.metrics import BundleMetrics, MissingCounts
from service.bundles.refusals import BundleRefusal, BundleRefusals
from service.bundles.validation import BundleValidation, ValidBundle, prepare, validate
from service.bundles.worker_bundles import BundleVerdict, WorkerBundles, verdict_on
from service.errors import RETRIED, BundleRefused, FilesUnavailable, NotReady
from service.recommend.hidden_items import HiddenItems
from service.recommend.recent_histories import RecentHistories
from service.runtime.background_tasks import Background, run_in_loop
from service.runtime.file_calls import FileCalls
from service.runtime.malloc import collect

_T = TypeVar("_T")

_PREPARING_NICE = 10  # not the lowest: on a machine without a free core it would keep a rollback waiting for a minute
_FEW_QUERIES = 20  # of a bundle that another worker has compared
_RELEASE_POLL_S = 0.02
_RELEASE_COLLECT_S = 1.0
_RELEASE_LIMIT_S = 10.0
_READ_LIMIT_S: Final = 10.0  # more than an object store takes to fail
_CHECK_LIMIT_S: Final = 1.0


@dataclass(slots=True, eq=False)
class LoadedBundle:
    """A bundle in memory.

    Attributes:
        bundle: loaded and warm.
        identity: which publication of its id it is.
        missing: number of items that lack a slot.
        comparison: with the bundle that was active before; None for the first one and for one reused from memory.
        verified: whether every file was hashed.
        altered: whether a file was found altered.
        truncated: whether a mapped file has become shorter; nothing of the bundle may be read any more.
        found_at: monotonic seconds when the watcher found it.
        hash_again_at: monotonic seconds when its files are hashed again, as one could not be read.
    """

    bundle: Bundle
    identity: Identity
    missing: MissingCounts
    comparison: Comparison | None = None
    verified: bool = False
    altered: bool = False
    truncated: bool = False
    found_at: float = field(default_factory=monotonic)
    hash_again_at: float = inf


class LoadedBundles:
    """The bundles in memory. To be used by one caller at a time.

    Args:
        active_bundle: the bundle that requests read.
        hidden: the hidden items.
        loader: loads bundles from the registry.
        recent: histories on which bundles are compared.
        evaluation_queries: how many evaluation queries are used where there are no recent histories.
        metrics: bundle metrics.
        log: the service's logger.
        workers: what the worker processes of one service agree on; None: there is only this process.

    Attributes:
        active: the bundle that answers requests; None before the first one.
        loading: id of the bundle that is being loaded and validated now.
        refusals: bundles that may not be activated.
        loader: as given.
        metrics: as given.
        log: as given.
        workers: as given.
        files: the thread that reads the registry beside loading.
    """

    def __init__(
        self,
        *,
        active_bundle: ActiveBundle,
        hidden: HiddenItems,
        loader: BundleLoader,
        recent: RecentHistories,
        evaluation_queries: int,
        metrics: BundleMetrics,
        log: FilteringBoundLogger,
        workers: WorkerBundles | None = None,
    ) -> None:
        self._active_bundle = active_bundle
        self._hidden = hidden
        self._recent = recent
        self._evaluation_queries = evaluation_queries
        self._validating = Background("bundle-validation", nice=0)
        self._preparing = Background("bundle-preparation", nice=_PREPARING_NICE)
        self._fetching = Background("bundle-fetching", nice=0)
        self.files = FileCalls("registry-files")
        self._closed = False
        self._released: list[weakref.ref[Bundle]] = []
        self._freeing: set[asyncio.Task[None]] = set()
        self.loader = loader
        self.metrics = metrics
        self.log = log
        self.workers = workers
        self.active: LoadedBundle | None = None
        self._previous: LoadedBundle | None = None
        self.loading: str | None = None
        self.refusals = BundleRefusals()

    @property
    def previous(self) -> LoadedBundle | None:
        """The bundle that was active before, or that an experiment uses beside the active one."""
        return self._previous

    def keep_beside(self, loaded: LoadedBundle | None) -> None:
        """Keep a bundle from :meth:`obtain` in memory without activating it; the active one is kept anyway."""
        if loaded is not self.active or loaded is None:
            self._previous = loaded
            self._active_bundle.keep_beside(None if loaded is None else loaded.bundle)

    def close(self) -> None:
        """Take no more work; a validation in progress ends soon."""
        self._closed = True
        self._validating.close()
        self._preparing.close()
        self._fetching.close()
        self.files.close()

    async def read(self, call: Callable[[], _T]) -> _T:
        """Run a call that reads the registry beside the event loop, and raise what it raises.

        Raises:
            BundleRefused: the file system of the registry does not answer.
        """
        try:
            return await self.files.run(call, patience_s=_READ_LIMIT_S)
        except FilesUnavailable as error:
            raise BundleRefused("unavailable", f"{self.loader.location}: {error}") from error

    def is_active(self, bundle_id: str) -> bool:
        """Whether this bundle answers requests and is not known to be altered."""
        return self.active is not None and self.active.bundle.id == bundle_id and not self.active.altered

    async def is_here(self, bundle_id: str) -> bool:
        """As `BundleLoader.is_here`; False also where the disk of the copies does not answer."""
        try:
            return await self.files.run(partial(self.loader.is_here, bundle_id), patience_s=_CHECK_LIMIT_S)
        except FilesUnavailable:
            return False

    async def in_memory(self, bundle_id: str) -> LoadedBundle | None:
        """The active or the previous bundle if it has this id and is not known to be altered."""
        if self.is_active(bundle_id):
            return self.active
        previous = self.previous
        if previous is None or previous.altered or previous.bundle.id != bundle_id:
            return None
        written = await self._was_written(previous.bundle.files)
        if self.previous is not previous:
            return None  # it was released meanwhile
        if written:
            self.release(previous)  # loading it again verifies its hashes
            return None
        previous.found_at, previous.comparison = monotonic(), None
        return previous

    async def obtain(self, bundle_id: str, bounds: ShadowBounds | None, *, again: bool = False) -> LoadedBundle:
        """A bundle that may be activated: one of the two in memory, else a new one; then the previous one is freed.

        Args:
            bundle_id: which.
            bounds: for the comparison with the active bundle; None: an operator asked for exactly this bundle.
            again: validate it also if another worker has refused it.

        Raises:
            BundleRefused: it may not be activated; remembered, counted and logged.
            NotReady: requests still use an earlier bundle, here or in another worker, so that there would be three.
        """
        known = await self.in_memory(bundle_id)
        if known is not None:
            return known
        found_at = monotonic()
        self.loading = bundle_id
        try:
            if not await self.is_here(bundle_id):  # nothing in memory is freed for it before it is here
                await self._fetching.run(partial(self.loader.fetch, bundle_id))
            identity = await self.read(partial(self.loader.identity, bundle_id))
            await self._check_searchable(bundle_id, identity)
            if self.previous is not None:
                self.release(self.previous)
            await self._wait_for_released()
            valid, followed = await self._validate_in_turn(bundle_id, bounds, again)
        finally:
            self.loading = None
        if isinstance(valid, BundleRefused):
            self.refuse(BundleRefusal.of(bundle_id, identity, valid))
            raise valid
        self.refusals.remove(bundle_id)
        comparison = valid.comparison if followed is None else None  # the other worker has the one that counts
        verified = valid.verified or self.loader.hashes_all or (followed is not None and followed.hashed)
        return LoadedBundle(valid.bundle, identity, valid.missing, comparison, verified, found_at=found_at)

    async def _check_searchable(self, bundle_id: str, identity: Identity) -> None:
        """Refuse a bundle whose items cannot be searched, before anything in memory is freed for it."""
        try:
            await self._fetching.run(partial(self.loader.check_searchable, bundle_id))
        except BundleRefused as error:
            self.refuse(BundleRefusal.of(bundle_id, identity, error))
            raise

    def activate(self, loaded: LoadedBundle) -> bool:
        """Let a bundle answer requests from now on; the one before stays in memory unless it was altered.

        Args:
            loaded: from :meth:`obtain`, or the first one.

        Returns:
            Whether it is another bundle than before.
        """
        old = self.active
        if old is loaded:
            return False
        if self.previous is not None and self.previous is not loaded:
            self.release(self.previous)
        self.active = loaded
        self.keep_beside(old)
        self._active_bundle.swap(loaded.bundle)
        if self.workers is not None:
            self.workers.activated(loaded.bundle.id, self._held())
        self.metrics.activated(loaded.bundle, loaded.missing)
        if old is not None and old.altered:
            self.release(old)
        return True

    def withdraw(self, loaded: LoadedBundle) -> None:
        """Stop answering at once from a bundle whose file became shorter; :meth:`activate` replaces it."""
        loaded.altered = loaded.truncated = True
        if self.active is loaded:
            self._active_bundle.withdraw(
                "the bundle that answered is damaged, and no other one is loaded yet; try again soon"
            )

    def refuse(self, refusal: BundleRefusal) -> None:
        """Remember, count and log a bundle that may not be activated."""
        self.refusals.add(refusal)
        self.metrics.refused(refusal.reason)
        if refusal.reason == "altered":
            self.loader.suspect(refusal.bundle)
        self.log.error("bundle refused", bundle=refusal.bundle, reason=refusal.reason, detail=refusal.message)

    def release(self, loaded: LoadedBundle) -> None:
        """Free a bundle that will not be used again: in the background, as unmapping gigabytes takes a while."""
        if self.previous is loaded:
            self.keep_beside(None)
        self._released.append(weakref.ref(loaded.bundle))
        if not self._closed:
            task = asyncio.create_task(self._validating.run([loaded].clear))
            self._freeing.add(task)
            task.add_done_callback(self._freeing.discard)

    async def _wait_for_released(self) -> None:
        """Wait until no request in progress uses a released bundle.

        Raises:
            NotReady: one does for too long.
        """
        started = monotonic()
        collected = False
        while self._released:
            self._released = [bundle for bundle in self._released if bundle() is not None]
            waited = monotonic() - started
            if self._released and waited > _RELEASE_LIMIT_S:
                raise NotReady("an earlier bundle is still in use by a request; try again soon")
            if self._released and waited > _RELEASE_COLLECT_S and not collected:
                collected = True
                await self._validating.run(collect)
            await asyncio.sleep(_RELEASE_POLL_S)

    async def free_previous(self) -> None:
        """Free the bundle before the active one, as another worker needs room for a new one."""
        if self.previous is not None:
            self.release(self.previous)
            await self._wait_for_released()

    def show_held(self) -> None:
        """Show the other workers which bundles are in memory here."""
        if self.workers is not None and self.loading is None:
            self.workers.hold(self._held())

    async def is_refused(self, bundle_id: str) -> bool:
        """Whether this publication was refused, with no approval by another worker since, or cannot be read now."""
        try:
            identity = await self.files.run(partial(self.loader.identity, bundle_id), patience_s=_CHECK_LIMIT_S)
            if not self.refusals.contains(bundle_id, identity):
                return False
            if self.workers is None:
                return True
            key = await self.files.run(partial(self.workers.key_of, bundle_id), patience_s=_CHECK_LIMIT_S)
            known = self.workers.verdict(key)
        except FilesUnavailable:
            return True
        return known is None or known.reason is not None

    async def _was_written(self, files: MappedFiles) -> bool:
        """Whether a mapped file was written to since the last check, or became shorter; False: that is not known."""
        try:
            return await self.files.run(files.written, patience_s=_CHECK_LIMIT_S)
        except BundleInvalid:
            return True
        except FilesUnavailable:
            return False

    def _held(self) -> set[str]:
        """Ids of the bundles in memory, also of those that a request still uses."""
        held = {loaded.bundle.id for loaded in (self.active, self.previous) if loaded is not None}
        return held | {bundle.id for bundle in (reference() for reference in self._released) if bundle is not None}

    async def _validate_in_turn(
        self, bundle_id: str, bounds: ShadowBounds | None, again: bool
    ) -> tuple[ValidBundle | BundleRefused, BundleVerdict | None]:
        """Validate a bundle, or follow the verdict of another worker, which is then returned too."""
        workers = self.workers
        if workers is None:
            return await self._load_and_validate(bundle_id, bounds, None), None
        await workers.make_room(bundle_id, self._held())
        async with workers.turn():
            key = await self.read(partial(workers.key_of, bundle_id))
            known = workers.verdict(key)
            if known is not None and known.reason is not None:  # an operator may ask again; bounds may not apply now
                asked_for = again or (known.reason == "bound" and bounds is None)
                known = None if asked_for or known.reason in RETRIED else known
            if known is None:
                valid = await self._load_and_validate(bundle_id, bounds, None)
                workers.record(key, verdict_on(valid, hashed=self.loader.hashes_all))
                return valid, None
        refused = known.refusal()
        return (await self._load_and_validate(bundle_id, None, known) if refused is None else refused), known

    async def _load_and_validate(
        self, bundle_id: str, bounds: ShadowBounds | None, approved: BundleVerdict | None
    ) -> ValidBundle | BundleRefused:
        """Load a bundle, hash it and compare it; only warm it up if another worker has approved it."""
        hidden = self._hidden.snapshot()
        old = None if self.active is None or self.active.truncated or approved is not None else self.active.bundle
        validation = BundleValidation(
            old=None if old is None else ComparedBundle(old, self._hidden.available(old), self.loader.retriever),
            hidden=hidden,
            recent=self._recent.newest() if approved is None else (),
            evaluation_queries=self._evaluation_queries if approved is None else _FEW_QUERIES,
            bounds=bounds,
            hash_all=not self.loader.hashes_all and approved is None,
            stop=lambda: self._closed,
            ask_old=partial(run_in_loop, asyncio.get_running_loop()) if self.loader.one_thread else ask_here,
            retriever=self.loader.retriever,
        )
        # Loading runs at normal priority: threads that an encoder starts inherit that of the thread that loads it.
        verified = approved is not None and approved.hashed
        bundle = await self._validating.run(partial(_load, self.loader, bundle_id, verified))
        if isinstance(bundle, BundleRefused):
            return bundle
        valid = await self._validate(bundle, validation)
        if isinstance(valid, ValidBundle):
            await self._hidden.adopt(bundle, valid.available, hidden)
            return valid
        # The other thread may reference the bundle for a moment longer than its result took.
        self._released.append(weakref.ref(bundle))
        refused = [bundle]
        del bundle
        await self._validating.run(refused.clear)
        return valid

    async def _validate(self, bundle: Bundle, validation: BundleValidation) -> ValidBundle | BundleRefused:
        verified = await self._preparing.run(partial(prepare, bundle, validation))
        if isinstance(verified, BundleRefused):
            return verified
        return await self._validating.run(partial(validate, bundle, validation, verified=verified))


def _load(loader: BundleLoader, bundle_id: str, verified: bool) -> Bundle | BundleRefused:
    """A refusal is returned, not raised: its traceback would keep what was loaded so far in memory."""
    try:
        return loader.load(bundle_id, verified=verified)
    except BundleRefused as error:
        return BundleRefused(error.reason, str(error))
