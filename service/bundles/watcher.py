"""Keeps the active bundle equal to the desired one: the pinned bundle, else the registry's current one.

A new bundle is loaded, hashed, warmed up and compared in other threads, and is then activated in one step while
requests go on. A bad bundle is refused and remembered, and the active one stays.
"""

import asyncio
from collections.abc import Coroutine
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from index.errors import IndexingError, RegistryError
from service.bundles.comparison import ShadowBounds
from service.bundles.experiment_bundles import ExperimentBundles
from service.bundles.loaded_bundles import LoadedBundle, LoadedBundles
from service.bundles.metrics import count_missing
from service.bundles.operator_state import OperatorState
from service.bundles.poll_errors import PollErrors
from service.bundles.refusals import RETRY_S, BundleRefusal
from service.bundles.registry_look import Look, RegistryLook
from service.bundles.startup import Startup
from service.bundles.worker_bundles import hash_in_full
from service.errors import BundleRefused, FilesUnavailable, NotReady, OperatorStateUnavailable
from service.recommend.hidden_items import available_rows
from service.runtime.background_tasks import Background


class Watcher:
    """Polls the operator state and the registry; activates, replaces and rolls back bundles.

    Args:
        loaded: the bundles in memory; the watcher shares their loader, metrics and log.
        operator_state: pin and hidden items.
        bounds: for the comparison of a new bundle with the active one.

    Attributes:
        experiments: the bundles of the running experiment.
    """

    def __init__(self, *, loaded: LoadedBundles, operator_state: OperatorState, bounds: ShadowBounds) -> None:
        self._loaded = loaded
        self._loader = loaded.loader
        self._metrics = loaded.metrics
        self._log = loaded.log
        self._operator_state = operator_state
        self._bounds = bounds
        self._poll_s = loaded.loader.settings.poll_s
        self._look = RegistryLook(loaded.loader, loaded.files)
        self._hashing = Background("bundle-hashes", nice=19)
        self._changing = asyncio.Lock()
        self.experiments = ExperimentBundles(loaded, operator_state, self._changing)
        self._operator_changes = 0
        self._desired: str | None = None
        self._errors = PollErrors(loaded.metrics, loaded.log)
        self._polled_at = monotonic()
        self._polling: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def start(self, startup: Startup) -> None:
        """Activate the first bundle, if there is one, and start polling."""
        if startup.operator_state is not None:
            await self._operator_state.begin_with(startup.operator_state)
        await self._sync_operator_state()
        for refusal in startup.refusals:
            self._loaded.refuse(refusal)
        hidden_items = self._operator_state.hidden
        if startup.bundle is not None:
            self._metrics.loaded(startup.bundle)
            hidden = hidden_items.snapshot()
            available = await asyncio.to_thread(available_rows, startup.bundle, hidden.ids)
            await hidden_items.adopt(startup.bundle, available, hidden)
            missing = await asyncio.to_thread(count_missing, startup.bundle)
            self._activate(LoadedBundle(startup.bundle, startup.identity, missing, verified=startup.verified))
        self._metrics.read_at_scrape(
            poll_age_s=lambda: monotonic() - self._polled_at,
            registry_age_s=lambda: 0.0 if self._operator_state.pin else self._loader.registry_age_s,
            hidden=lambda: len(hidden_items),
        )
        self._loader.start()
        self._polling = asyncio.create_task(self._poll_forever())

    async def stop(self) -> None:
        """Stop polling and give up a validation in progress."""
        self._stopped = True
        self._loaded.close()
        self._loader.close()
        self._look.close()
        self._hashing.close()
        tasks = [*self._tasks, *([] if self._polling is None else [self._polling])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def alive(self) -> bool:
        """Whether it polls."""
        return self._polling is not None and not self._polling.done()

    def status(self) -> dict[str, Any]:
        """For `GET /bundle`; without the messages of refusals, which have paths in them."""
        active, previous = self._loaded.active, self._loaded.previous
        comparison = None if active is None else active.comparison
        return {
            "pin": self._operator_state.pin,
            "wanted": self._desired,
            "loading": self._loaded.loading,
            "previous": None if previous is None else previous.bundle.id,
            "verified": active is not None and active.verified,
            "comparison": None if comparison is None else comparison.as_json(),
            "refused": [
                {"bundle": refusal.bundle, "reason": refusal.reason, "at": refusal.at}
                for refusal in self._loaded.refusals
            ],
            "last_look_seconds": monotonic() - self._polled_at,
            **({} if self.experiments.waiting is None else {"waiting": self.experiments.waiting}),
            **({} if self._loader.downloading is None else {"downloading": self._loader.downloading}),
        }

    async def reload(self) -> bool:
        """Clear the pin and activate the registry's current bundle, even one that was refused before.

        Returns:
            Whether the active bundle is another one than before.

        Raises:
            BundleRefused: there is none, or it may not be activated; nothing is changed.
            OperatorStateUnavailable: the pin cannot be cleared; nothing is changed.
            NotReady: requests still use the bundle before the previous one.
        """
        async with self._changing:
            await self._operator_state.sync()
            try:
                current = await self._loaded.read(self._loader.current)
            except RegistryError as error:
                raise BundleRefused("missing", str(error)) from error
            if current is None:
                raise BundleRefused("missing", f"no bundle is published in {self._loader.location}; publish one")
            return await self._pin_and_activate(await self._loaded.obtain(current, self._bounds, again=True), pin=None)

    async def roll_back(self, bundle_id: str | None) -> bool:
        """Pin a bundle for all replicas and activate it.

        Args:
            bundle_id: which; None: the newest good one before the active one.

        Returns:
            Whether the active bundle is another one than before.

        Raises:
            BundleRefused: there is none, or it may not be activated; nothing is changed.
            OperatorStateUnavailable: the pin cannot be written; nothing is changed.
            NotReady: requests still use the bundle before the previous one.
        """
        async with self._changing:
            await self._operator_state.sync()
            earlier = self._load_earlier() if bundle_id is None else self._loaded.obtain(bundle_id, None, again=True)
            loaded = await earlier
            return await self._pin_and_activate(loaded, pin=loaded.bundle.id)

    async def _pin_and_activate(self, loaded: LoadedBundle, *, pin: str | None) -> bool:
        try:
            await self._operator_state.set_pin(pin)
        except OperatorStateUnavailable:
            if loaded is not self._loaded.active and loaded is not self._loaded.previous:
                self._loaded.release(loaded)
            raise
        self._desired = loaded.bundle.id
        self._operator_changes += 1
        return self._activate(loaded)

    async def _poll_forever(self) -> None:
        while not self._stopped:  # redis-py may swallow a cancellation that falls into the middle of a call
            try:
                await self._poll()
            except Exception as error:  # noqa: BLE001 - after any error of one poll the next one follows
                self._metrics.failed("look")
                self._log.error("watcher failed", exc_info=error)
            self._polled_at = monotonic()
            await asyncio.sleep(self._poll_s)

    async def _poll(self) -> None:
        await self._sync_operator_state()
        self._show_workers()
        look = await self._take_look()
        operator_changes, pin = self._operator_changes, self._operator_state.pin
        if look is not None and look.asked_at != operator_changes:
            return  # an operator changed the bundle while the pointer was read, so the pointer's value is outdated
        self._desired = desired = pin or (None if look is None else look.current)
        is_behind = desired is not None and not self._loaded.is_active(desired)
        self._metrics.desired(pin, behind=is_behind)
        waits = self.experiments.holds_back(desired)
        if self._changing.locked() or desired is None:
            return
        if waits or not is_behind:
            missing = None if look is None else await self.experiments.missing()
            if missing is not None and not self._changing.locked():
                self._spawn(self.experiments.load(missing))
            return
        known = await self._loaded.in_memory(desired)
        if self._changing.locked() or operator_changes != self._operator_changes:
            return
        if known is not None:
            self._activate(known)
        if known is not None or look is None:
            return
        here = await self._loaded.is_here(desired)
        self._errors.report("download", self._loader.download_error)
        if here and not await self._loaded.is_refused(desired) and not self._changing.locked():
            self._spawn(self._change_to(desired))

    def _show_workers(self) -> None:
        """Show the other workers which bundles are in memory, and free one if they need its room."""
        workers = self._loaded.workers
        if workers is not None and workers.room_is_wanted and not self._changing.locked():
            self._spawn(self._make_room())
        self._loaded.show_held()

    async def _make_room(self) -> None:
        async with self._changing:
            try:
                await self._loaded.free_previous()
            except NotReady as error:
                self._log.error("bundle not freed", detail=str(error))

    async def _take_look(self) -> Look | None:
        """Look at the pointer, unless a bundle is pinned, and at the files in memory; None: they do not answer yet."""
        pointer, changes = self._operator_state.pin is None, self._operator_changes
        try:
            look = await self._look.take(
                (self._loaded.previous, self._loaded.active), pointer=pointer, asked_at=changes
            )
        except FilesUnavailable as error:
            self._errors.report("pointer", f"{self._loader.location}: {error}")
            return None
        self._errors.report("pointer", None if look.error is None else str(look.error))
        if look.error is None:
            self._errors.report("cache", self._loader.cache_error)
        self._check_files(look)
        return look

    def _check_files(self, look: Look) -> None:
        """Withdraw the active bundle at once if one of its files became shorter; hash what was written to."""
        shorter = dict(look.shorter)
        active, previous = self._loaded.active, self._loaded.previous
        if previous is not None and (previous.bundle.files in shorter or previous.bundle.files in look.written):
            self._log.warning("files written to in place", bundle=previous.bundle.id)
            self._loaded.release(previous)  # loading it again verifies its hashes
        if active is None or active.truncated:
            return
        error = shorter.get(active.bundle.files)
        if error is not None:
            self._loaded.withdraw(active)
            self._log.error("file shorter than what is mapped", bundle=active.bundle.id, detail=str(error))
            self._spawn(self._replace(active, BundleRefused("altered", str(error))))
        elif active.bundle.files in look.written and not active.altered:
            self._log.warning("files written to in place", bundle=active.bundle.id)
            active.verified = False
            self._spawn(self._verify(active))
        elif monotonic() >= active.hash_again_at:
            active.hash_again_at = inf
            self._spawn(self._verify(active))

    async def _sync_operator_state(self) -> None:
        """Bring the operator state up to date; if the store is down, the last known state stays."""
        try:
            await self._operator_state.sync()
        except OperatorStateUnavailable as error:
            self._errors.report("directives", str(error))
        else:
            self._errors.report("directives", None)

    async def _change_to(self, desired: str) -> None:
        """Load and activate the desired bundle, unless another one has become the desired one meanwhile."""
        async with self._changing:
            if self._desired != desired or self._loaded.is_active(desired):
                return
            bounds = None if desired == self._operator_state.pin else self._bounds
            step = await self._step_to(desired)
            try:
                loaded = await self._loaded.obtain(step, bounds)
            except BundleRefused:
                return  # already counted and logged
            except NotReady as error:
                self._log.error("bundle not loaded", bundle=step, detail=str(error))
                return
            if self._desired == desired or step != desired:
                self._activate(loaded)
            else:
                self._loaded.release(loaded)

    async def _step_to(self, desired: str) -> str:
        """The bundle to activate next: that of the other workers where they are ahead, else the desired one."""
        workers, active = self._loaded.workers, self._loaded.active
        if workers is None:
            return desired
        followed = workers.followed(None if active is None else active.bundle.id)
        if followed is None or await self._loaded.is_refused(followed):
            return desired
        return followed

    async def _load_earlier(self) -> LoadedBundle:
        """The newest good bundle before the active one, from memory or from the registry.

        Raises:
            BundleRefused: there is none.
            NotReady: requests still use the bundle before the previous one.
        """
        if self._loaded.active is None:
            raise BundleRefused("missing", "no bundle answers, so there is none before it; name one")
        active = self._loaded.active.bundle.id
        earlier: list[str] | None = None
        message = ""
        try:
            earlier = await self._loaded.read(partial(self._loader.earlier, active))
        except (IndexingError, BundleRefused) as error:
            message = str(error)
        # Only the id: a reference to the bundle would keep it in memory while another one is loaded.
        previous = None if self._loaded.previous is None else self._loaded.previous.bundle.id
        if previous is not None and (self._loaded.active.altered or await self._precedes(previous, active, earlier)):
            known = await self._loaded.in_memory(previous)
            if known is not None:
                return known
        if earlier is None:
            raise BundleRefused("missing", message)
        for bundle_id in earlier:
            identity = await self._loaded.read(partial(self._loader.identity, bundle_id))
            if self._loaded.refusals.contains(bundle_id, identity):
                continue
            try:
                return await self._loaded.obtain(bundle_id, None)
            except BundleRefused:
                continue  # already counted and logged
        raise BundleRefused("missing", f"{self._loader.location}: there is no good bundle before {active}; publish one")

    async def _precedes(self, previous: str, active: str, earlier: list[str] | None) -> bool:
        """As `BundleLoader.precedes`, beside the event loop."""
        precedes = partial(self._loader.precedes, previous, active, earlier)
        return precedes() if earlier is None else await self._loaded.read(precedes)  # None: it reads no file

    def _activate(self, loaded: LoadedBundle) -> bool:
        old = self._loaded.active
        if not self._loaded.activate(loaded):
            return False
        if old is not None:
            seconds = monotonic() - loaded.found_at
            self._metrics.swapped(seconds, loaded.comparison)
            took, shown = round(seconds, 3), None if loaded.comparison is None else loaded.comparison.as_json()
            self._log.info(
                "bundle swapped", bundle=loaded.bundle.id, before=old.bundle.id, seconds=took, comparison=shown
            )
        if not loaded.verified:
            self._spawn(self._verify(loaded))
        return True

    async def _verify(self, loaded: LoadedBundle) -> None:
        """Hash every file of the active bundle; if one was altered, roll back to the last good bundle."""
        found = await self._hashing.run(
            lambda: hash_in_full(
                loaded.bundle, lambda: self._stopped or self._loaded.active is not loaded, self._loaded.workers
            )
        )
        if found is None:
            loaded.hash_again_at = monotonic() + RETRY_S
        if not isinstance(found, BundleRefused):
            loaded.verified = bool(found)
            return
        if loaded.altered:
            return  # another check has found it already
        loaded.altered = True
        await self._replace(loaded, found)

    async def _replace(self, loaded: LoadedBundle, refused: BundleRefused) -> None:
        """Activate the last good bundle in place of an altered one."""
        async with self._changing:
            self._loaded.refuse(BundleRefusal.of(loaded.bundle.id, loaded.identity, refused))
            if self._loaded.previous is loaded:
                self._loaded.release(loaded)
            if self._loaded.active is not loaded:
                return
            try:
                self._activate(await self._load_earlier())
            except (BundleRefused, NotReady) as error:
                event = "no bundle is active" if loaded.truncated else "altered bundle stays active"
                self._log.error(event, bundle=loaded.bundle.id, detail=str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work in a task of its own; an unexpected failure is counted and logged."""

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._metrics.failed("work")
                self._log.error("watcher failed", exc_info=error)

        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(done)
