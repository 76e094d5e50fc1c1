"""LoadedBundles: the bundles in memory, the one that answers and the one before it; never more than two."""

import asyncio
import weakref
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from index.errors import BundleInvalid
from service.bundles.active_bundle import CurrentBundle
from service.bundles.comparison import Comparison, Shadow, ShadowBounds, ask_here
from service.bundles.loader import BundleLoader, Identity
from service.bundles.metrics import BundleMetrics, Lacking
from service.bundles.refusals import Refusal, Refusals
from service.bundles.validation import BundleValidation, Passed, judge, prepare
from service.errors import BundleRefused, NotReady
from service.recommend.hidden_items import HiddenItems
from service.recommend.recent_histories import RecentHistories
from service.runtime.background_tasks import Background, run_in_loop
from service.runtime.malloc import collect

_PREPARING_NICE = 10  # not the lowest: on a machine without a free core it would keep a rollback waiting for a minute
_GONE_STEP_S = 0.02
_GONE_COLLECT_S = 1.0
_GONE_LIMIT_S = 10.0


@dataclass(slots=True, eq=False)
class BundleInMemory:
    """A bundle in memory.

    Attributes:
        bundle: loaded and warm.
        identity: which publishing of its id it is.
        lacking: items that lack a slot.
        comparison: with what answered before it; None for the first, and for one that was in memory already.
        verified: whether every file was hashed.
        altered: whether a file was found altered.
        shortened: whether a mapped file is shorter now; nothing of the bundle may be read any more.
        found: monotonic seconds when it was found.
    """

    bundle: Bundle
    identity: Identity
    lacking: Lacking
    comparison: Comparison | None = None
    verified: bool = False
    altered: bool = False
    shortened: bool = False
    found: float = field(default_factory=monotonic)


class LoadedBundles:
    """Gets bundles into memory, lets one of them answer, and lets go of them. One caller at a time.

    Args:
        current: which bundle answers.
        hidden: the hidden items.
        source: where bundles are.
        recent: histories to compare bundles on.
        probes: how many probes stand in for them.
        metrics: counts.
        log: the service's logger.

    Attributes:
        serving: what answers; None: nothing does yet.
        previous: what answered before it, if it is still in memory.
        loading: id of the bundle that is tried now.
        refusals: what may not serve.
    """

    def __init__(
        self,
        *,
        current: CurrentBundle,
        hidden: HiddenItems,
        source: BundleLoader,
        recent: RecentHistories,
        probes: int,
        metrics: BundleMetrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._current = current
        self._hidden = hidden
        self._source = source
        self._recent = recent
        self._probes = probes
        self._metrics = metrics
        self._log = log
        self._aside = Background("bundle-trial", nice=0)
        self._patient = Background("bundle-preparation", nice=_PREPARING_NICE)
        self._closed = False
        self._leaving: list[weakref.ref[Bundle]] = []
        self._freeing: set[asyncio.Task[None]] = set()
        self.serving: BundleInMemory | None = None
        self.previous: BundleInMemory | None = None
        self.loading: str | None = None
        self.refusals = Refusals()

    def close(self) -> None:
        """Take no more work; a trial in progress ends soon."""
        self._closed = True
        self._aside.close()
        self._patient.close()

    def serves(self, bundle_id: str) -> bool:
        """Whether this bundle answers and is whole as far as is known."""
        return self.serving is not None and self.serving.bundle.id == bundle_id and not self.serving.altered

    def kept(self, bundle_id: str) -> BundleInMemory | None:
        """One of the two bundles in memory, if it has this id and is whole as far as is known."""
        if self.serves(bundle_id):
            return self.serving
        previous = self.previous
        if previous is None or previous.altered or previous.bundle.id != bundle_id:
            return None
        if was_written(previous):
            self.let_go(previous)  # loaded anew it is held to its hashes
            return None
        previous.found, previous.comparison = monotonic(), None
        return previous

    async def obtain(self, bundle_id: str, bounds: ShadowBounds | None) -> BundleInMemory:
        """A bundle that may answer: one of the two in memory, or another, for which the one before is dropped.

        Args:
            bundle_id: which.
            bounds: what it is held to beside the one that answers; None: an operator asked for this very bundle.

        Raises:
            BundleRefused: it may not serve; remembered, counted and logged.
            NotReady: the one before is still in use by requests, so that there would be three.
        """
        kept = self.kept(bundle_id)
        if kept is not None:
            return kept
        found = monotonic()
        self.loading = bundle_id
        try:
            identity = await asyncio.to_thread(self._source.identity, bundle_id)
            if self.previous is not None:
                self.let_go(self.previous)
            await self._all_gone()
            passed = await self._try(bundle_id, bounds)
        finally:
            self.loading = None
        if isinstance(passed, BundleRefused):
            self.refuse(Refusal.of(bundle_id, identity, passed))
            raise passed
        self.refusals.forgive(bundle_id)
        verified = passed.verified or self._source.hashes_all
        return BundleInMemory(passed.bundle, identity, passed.lacking, passed.comparison, verified, found=found)

    def take_over(self, held: BundleInMemory) -> bool:
        """Let a bundle answer from now on, and keep the one before unless it was altered; gives whether it is another.

        Args:
            held: from :meth:`obtain`, or the first one.
        """
        old = self.serving
        if old is held:
            return False
        if self.previous is not None and self.previous is not held:
            self.let_go(self.previous)
        self.previous = old
        self.serving = held
        self._current.swap(held.bundle)
        self._metrics.serving(held.bundle, held.lacking)
        if old is not None and old.altered:
            self.let_go(old)
        return True

    def withdraw(self, held: BundleInMemory) -> None:
        """Let a bundle that became shorter answer no more, at once; :meth:`take_over` replaces it."""
        held.altered = held.shortened = True
        if self.serving is held:
            self._current.withdraw(
                "the bundle that answered is damaged, and no other one is loaded yet; try again soon"
            )

    def refuse(self, refusal: Refusal) -> None:
        """Remember, count and log a bundle that may not serve."""
        self.refusals.add(refusal)
        self._metrics.refused(refusal.reason)
        self._log.error("bundle refused", bundle=refusal.bundle, reason=refusal.reason, detail=refusal.message)

    def let_go(self, held: BundleInMemory) -> None:
        """Free a bundle that will not be used again: in the background, as unmapping gigabytes takes a while."""
        if self.previous is held:
            self.previous = None
        self._leaving.append(weakref.ref(held.bundle))
        if not self._closed:
            task = asyncio.create_task(self._aside.run([held].clear))
            self._freeing.add(task)
            task.add_done_callback(self._freeing.discard)

    async def _all_gone(self) -> None:
        """Wait until no request in progress uses a bundle that was let go.

        Raises:
            NotReady: one does for too long.
        """
        started = monotonic()
        collected = False
        while self._leaving:
            self._leaving = [bundle for bundle in self._leaving if bundle() is not None]
            waited = monotonic() - started
            if self._leaving and waited > _GONE_LIMIT_S:
                raise NotReady("a bundle of before is still in use by a request; try again soon")
            if self._leaving and waited > _GONE_COLLECT_S and not collected:
                collected = True
                await self._aside.run(collect)
            await asyncio.sleep(_GONE_STEP_S)

    async def _try(self, bundle_id: str, bounds: ShadowBounds | None) -> Passed | BundleRefused:
        hidden = self._hidden.snapshot()
        old = None if self.serving is None or self.serving.shortened else self.serving.bundle
        trial = BundleValidation(
            old=None if old is None else Shadow(old, self._hidden.available(old)),
            hidden=hidden,
            recent=self._recent.newest(),
            probes=self._probes,
            bounds=bounds,
            hash_all=not self._source.hashes_all,
            stop=lambda: self._closed,
            ask_old=partial(run_in_loop, asyncio.get_running_loop()) if self._source.one_thread else ask_here,
        )
        # Loading happens at normal priority: threads that an encoder starts inherit that of the thread that loads it.
        bundle = await self._aside.run(partial(_load, self._source, bundle_id))
        if isinstance(bundle, BundleRefused):
            return bundle
        passed = await self._tried(bundle, trial)
        if isinstance(passed, Passed):
            await self._hidden.adopt(bundle, passed.available, hidden)
            return passed
        # The other thread may hold it for a moment longer than its answer took.
        self._leaving.append(weakref.ref(bundle))
        refused = [bundle]
        del bundle
        await self._aside.run(refused.clear)
        return passed

    async def _tried(self, bundle: Bundle, trial: BundleValidation) -> Passed | BundleRefused:
        verified = await self._patient.run(partial(prepare, bundle, trial))
        if isinstance(verified, BundleRefused):
            return verified
        return await self._aside.run(partial(judge, bundle, trial, verified=verified))


def was_written(held: BundleInMemory) -> bool:
    """Whether a mapped file of a bundle was written to since the last look, one that became shorter too."""
    try:
        return held.bundle.files.written()
    except BundleInvalid:
        return True


def _load(source: BundleLoader, bundle_id: str) -> Bundle | BundleRefused:
    """A refusal is given back, not raised: its traceback would keep what was loaded so far in memory."""
    try:
        return source.load(bundle_id)
    except BundleRefused as error:
        return BundleRefused(error.reason, str(error))
