"""Watcher: keeps the bundle that answers the one that should: the pinned, or else the one the registry points to.

A new bundle is loaded, hashed, warmed and compared aside, in a thread of low priority, and takes over as one value
while requests go on. A bad bundle is refused and remembered, and what answers stays.
"""

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from index.errors import BundleInvalid, BundleNotFound, IndexingError, RegistryError
from service.bundles.comparison import ShadowBounds
from service.bundles.loaded_bundles import BundleInMemory, LoadedBundles, was_written
from service.bundles.loader import BundleLoader
from service.bundles.metrics import BundleMetrics, count_lacking
from service.bundles.operator_state import OperatorState
from service.bundles.refusals import Refusal
from service.bundles.startup import Startup
from service.errors import BundleRefused, NotReady, OperatorStateUnavailable
from service.recommend.hidden_items import available_rows
from service.runtime.background_tasks import Background


class Watcher:
    """Looks, swaps and goes back; see the module.

    Args:
        shelf: the bundles in memory.
        source: where bundles are.
        directives: pin and hidden items.
        bounds: what a new bundle is held to beside the old one.
        metrics: counts.
        log: the service's logger.
        poll_s: seconds between two looks.
    """

    def __init__(
        self,
        *,
        shelf: LoadedBundles,
        source: BundleLoader,
        directives: OperatorState,
        bounds: ShadowBounds,
        metrics: BundleMetrics,
        log: FilteringBoundLogger,
        poll_s: float,
    ) -> None:
        self._shelf = shelf
        self._source = source
        self._directives = directives
        self._bounds = bounds
        self._metrics = metrics
        self._log = log
        self._poll_s = poll_s
        self._hashing = Background("bundle-hashes", nice=19)
        self._changing = asyncio.Lock()
        self._obeyed = 0
        self._wanted: str | None = None
        self._troubles: dict[str, str | None] = {}
        self._looked = monotonic()
        self._watching: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def start(self, opening: Startup) -> None:
        """Begin with a bundle, or without one, and watch from now on."""
        if opening.operator_state is not None:
            await self._directives.begin_with(opening.operator_state)
        await self._follow_directives()
        for refusal in opening.refusals:
            self._shelf.refuse(refusal)
        if opening.bundle is not None:
            self._metrics.loaded(opening.bundle)
            hidden = self._directives.hidden.snapshot()
            available = await asyncio.to_thread(available_rows, opening.bundle, hidden.ids)
            await self._directives.hidden.adopt(opening.bundle, available, hidden)
            lacking = await asyncio.to_thread(count_lacking, opening.bundle)
            self._take_over(BundleInMemory(opening.bundle, opening.identity, lacking, verified=opening.verified))
        hidden_items = self._directives.hidden
        self._metrics.ask(look_age_s=lambda: monotonic() - self._looked, hidden=lambda: len(hidden_items))
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End watching; a trial in progress is given up."""
        self._stopped = True
        self._shelf.close()
        self._hashing.close()
        tasks = [*self._tasks, *([] if self._watching is None else [self._watching])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def alive(self) -> bool:
        """Whether it watches."""
        return self._watching is not None and not self._watching.done()

    def status(self) -> dict[str, Any]:
        """For `GET /bundle`; without the messages of refusals, which have paths in them."""
        shelf = self._shelf
        comparison = None if shelf.serving is None else shelf.serving.comparison
        return {
            "pin": self._directives.pin,
            "wanted": self._wanted,
            "loading": shelf.loading,
            "previous": None if shelf.previous is None else shelf.previous.bundle.id,
            "verified": shelf.serving is not None and shelf.serving.verified,
            "comparison": None if comparison is None else comparison.as_json(),
            "refused": [{"bundle": kept.bundle, "reason": kept.reason, "at": kept.at} for kept in shelf.refusals],
            "last_look_seconds": monotonic() - self._looked,
        }

    async def reload(self) -> bool:
        """Clear the pin and let the pointer's bundle answer, also if it was refused; gives whether it is another one.

        Raises:
            BundleRefused: there is none, or it may not serve; nothing is changed.
            OperatorStateUnavailable: the pin cannot be cleared; nothing is changed.
            NotReady: the bundle before the last is still in use.
        """
        async with self._changing:
            await self._directives.sync()
            try:
                pointed = await asyncio.to_thread(self._source.pointed)
            except RegistryError as error:
                raise BundleRefused("missing", str(error)) from error
            if pointed is None:
                raise BundleRefused("missing", f"no bundle is published in {self._source.root}; publish one")
            return await self._obey(await self._shelf.obtain(pointed, self._bounds), pin=None)

    async def roll_back(self, bundle_id: str | None) -> bool:
        """Pin a bundle for all replicas and let it answer; gives whether it is another one.

        Args:
            bundle_id: which; None: the newest good one before the one that answers.

        Raises:
            BundleRefused: there is none, or it may not serve; nothing is changed.
            OperatorStateUnavailable: the pin cannot be written; nothing is changed.
            NotReady: the bundle before the last is still in use.
        """
        async with self._changing:
            await self._directives.sync()
            held = await self._earlier() if bundle_id is None else await self._shelf.obtain(bundle_id, None)
            return await self._obey(held, pin=held.bundle.id)

    async def _obey(self, held: BundleInMemory, *, pin: str | None) -> bool:
        try:
            await self._directives.set_pin(pin)
        except OperatorStateUnavailable:
            if held is not self._shelf.serving and held is not self._shelf.previous:
                self._shelf.let_go(held)
            raise
        self._wanted = held.bundle.id
        self._obeyed += 1
        return self._take_over(held)

    async def _watch(self) -> None:
        while not self._stopped:  # a cancellation that falls into the middle of a call to Redis may get lost there
            try:
                self._check_files()
                await self._look()
            except Exception as error:  # noqa: BLE001 - whatever one look meets, the next one is taken
                self._metrics.failed("look")
                self._log.error("watcher failed", exc_info=error)
            self._looked = monotonic()
            await asyncio.sleep(self._poll_s)

    async def _look(self) -> None:
        await self._follow_directives()
        obeyed, pin = self._obeyed, self._directives.pin
        wanted = pin or await self._pointed()
        if obeyed != self._obeyed:
            return  # while the pointer was read an operator had a say: what it says is old
        self._wanted = wanted
        is_behind = wanted is not None and not self._shelf.serves(wanted)
        self._metrics.wanted(pin, behind=is_behind)
        if wanted is None or not is_behind or self._changing.locked():
            return
        kept = self._shelf.kept(wanted)
        if kept is not None:
            self._take_over(kept)
            return
        identity = await asyncio.to_thread(self._source.identity, wanted)
        if not self._shelf.refusals.knows(wanted, identity) and not self._changing.locked():
            self._spawn(self._change(wanted))

    def _check_files(self) -> None:
        """Look whether somebody writes into the bundles in memory; one that became shorter answers no more, at once."""
        shelf, held = self._shelf, self._shelf.serving
        if shelf.previous is not None and was_written(shelf.previous):
            self._log.warning("files written to in place", bundle=shelf.previous.bundle.id)
            shelf.let_go(shelf.previous)  # loaded anew it is held to its hashes
        if held is None or held.shortened:
            return
        try:
            written = held.bundle.files.written()
        except BundleInvalid as error:
            shelf.withdraw(held)
            self._log.error("file shorter than what is mapped", bundle=held.bundle.id, detail=str(error))
            self._spawn(self._replace(held, BundleRefused("altered", str(error))))
            return
        if written and not held.altered:
            self._log.warning("files written to in place", bundle=held.bundle.id)
            held.verified = False
            self._spawn(self._verify(held))

    async def _follow_directives(self) -> None:
        """Catch up with what operators said; with the store down, what is known stays."""
        try:
            await self._directives.sync()
        except OperatorStateUnavailable as error:
            self._tell("directives", str(error))
        else:
            self._tell("directives", None)

    async def _pointed(self) -> str | None:
        try:
            pointed = await asyncio.to_thread(self._source.pointed)
        except RegistryError as error:
            self._tell("pointer", str(error))
            return None
        self._tell("pointer", None)
        return pointed

    def _tell(self, what: str, trouble: str | None) -> None:
        """Count every failure of a look; log only what is new."""
        if trouble is not None:
            self._metrics.failed(what)
        if self._troubles.get(what) != trouble:
            self._troubles[what] = trouble
            if trouble is not None:
                self._log.error("watcher hindered", what=what, detail=trouble)
            else:
                self._log.info("watcher unhindered", what=what)

    async def _change(self, wanted: str) -> None:
        """Let another bundle take over, unless meanwhile yet another is wanted."""
        async with self._changing:
            if self._wanted != wanted or self._shelf.serves(wanted):
                return
            bounds = None if wanted == self._directives.pin else self._bounds
            try:
                held = await self._shelf.obtain(wanted, bounds)
            except BundleRefused:
                return  # told by the shelf
            except NotReady as error:
                self._log.error("bundle not tried", bundle=wanted, detail=str(error))
                return
            if self._wanted == wanted:
                self._take_over(held)
            else:
                self._shelf.let_go(held)

    async def _earlier(self) -> BundleInMemory:
        """The newest good bundle before the one that answers, in memory or in the registry.

        Raises:
            BundleRefused: there is none.
            NotReady: the bundle before the last is still in use.
        """
        shelf = self._shelf
        if shelf.serving is None:
            raise BundleRefused("missing", "no bundle answers, so there is none before it; name one")
        serving = shelf.serving.bundle.id
        earlier: list[str] | None = None
        trouble = ""
        try:
            earlier = await asyncio.to_thread(self._source.earlier, serving)
        except IndexingError as error:
            trouble = str(error)
        # The id alone is kept: whoever holds the bundle itself would keep it in memory while another one is loaded.
        previous = None if shelf.previous is None else shelf.previous.bundle.id
        if previous is not None and (shelf.serving.altered or self._precedes(previous, serving, earlier)):
            kept = shelf.kept(previous)
            if kept is not None:
                return kept
        if earlier is None:
            raise BundleRefused("missing", trouble)
        for bundle_id in earlier:
            identity = await asyncio.to_thread(self._source.identity, bundle_id)
            if shelf.refusals.knows(bundle_id, identity):
                continue
            try:
                return await shelf.obtain(bundle_id, None)
            except BundleRefused:
                continue  # told by the shelf
        raise BundleRefused("missing", f"{self._source.root}: there is no good bundle before {serving}; publish one")

    def _precedes(self, bundle_id: str, serving: str, earlier: list[str] | None) -> bool:
        """Whether a bundle in memory was published before the one that answers; by their names where that is unknown.

        Args:
            bundle_id: of the bundle.
            serving: id of the one that answers.
            earlier: ids of those published before; None where the registry cannot be read.
        """
        if earlier is not None and (bundle_id in earlier or self._source.has(bundle_id)):
            return bundle_id in earlier
        return bundle_id < serving

    def _take_over(self, held: BundleInMemory) -> bool:
        shelf, old = self._shelf, self._shelf.serving
        if not shelf.take_over(held):
            return False
        if old is not None:
            seconds = monotonic() - held.found
            self._metrics.swapped(seconds, held.comparison)
            self._log.info(
                "bundle swapped",
                bundle=held.bundle.id,
                before=old.bundle.id,
                seconds=round(seconds, 3),
                comparison=None if held.comparison is None else held.comparison.as_json(),
            )
        if not held.verified:
            self._spawn(self._verify(held))
        return True

    async def _verify(self, held: BundleInMemory) -> None:
        """Hash every file of the bundle that answers; one that was altered gives way to the last good one."""
        found = await self._hashing.run(
            lambda: _hash(held.bundle, lambda: self._stopped or self._shelf.serving is not held)
        )
        if isinstance(found, bool):
            held.verified = found
            return
        if held.altered:
            return  # found by another look
        held.altered = True
        await self._replace(held, found)

    async def _replace(self, held: BundleInMemory, found: BundleRefused) -> None:
        """Let the last good bundle answer instead of an altered one."""
        async with self._changing:
            self._shelf.refuse(Refusal.of(held.bundle.id, held.identity, found))
            if self._shelf.previous is held:
                self._shelf.let_go(held)
            if self._shelf.serving is not held:
                return
            try:
                self._take_over(await self._earlier())
            except (BundleRefused, NotReady) as error:
                event = "no bundle answers" if held.shortened else "altered bundle goes on answering"
                self._log.error(event, bundle=held.bundle.id, detail=str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run beside; a failure that nobody foresaw is logged."""

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._metrics.failed("work")
                self._log.error("watcher failed", exc_info=error)

        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(done)


def _hash(bundle: Bundle, stop: Callable[[], bool]) -> bool | BundleRefused:
    """Whether every file was hashed; a refusal where one was altered. A bundle that was deleted can still answer."""
    try:
        return bundle.verify_in_full(stop)
    except BundleNotFound:
        return False
    except BundleInvalid as error:
        return BundleRefused("altered", str(error))
