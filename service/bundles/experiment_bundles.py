"""Keeps the bundles of the running experiment in memory, and a new bundle waiting while they need the room.

At most two bundles are in memory, so the arms may name the active bundle and one more. As long as such an experiment
runs, a newly published bundle waits. An operator who pins a bundle or reloads goes first: if a bundle of an arm has to
leave the memory for that, the experiment pauses.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from service.bundles.loaded_bundles import LoadedBundles
from service.bundles.operator_state import OperatorState
from service.errors import BundleRefused, Conflict, NotReady
from service.experiments.experiment import Experiment

_MOST_BUNDLES: Final = 2


def other_runs(running: Experiment, asked: Experiment) -> Conflict:
    """The refusal of an experiment while another one runs, or the same one with another definition."""
    differs = " with other arms, shares, salt or interleave" if asked.name == running.name else ""
    return Conflict(
        f"experiment {running.name} runs{differs}, and one runs at a time; "
        f"end it with DELETE /experiments/{running.name}"
    )


class ExperimentBundles:
    """The bundles that the arms of the running experiment name.

    Args:
        loaded: the bundles in memory.
        operator_state: has the experiment.
        changing: held by those who change the bundles in memory.

    Attributes:
        waiting: why the desired bundle waits; None: it does not.
    """

    def __init__(self, loaded: LoadedBundles, operator_state: OperatorState, changing: asyncio.Lock) -> None:
        self._loaded = loaded
        self._operator_state = operator_state
        self._changing = changing
        self.waiting: str | None = None

    @property
    def named(self) -> frozenset[str]:
        """Ids of the bundles that the arms of the running experiment name."""
        experiment = self._operator_state.experiment
        return frozenset() if experiment is None else experiment.bundles

    def holds_back(self, desired: str | None) -> bool:
        """Whether a bundle has to wait, as a bundle of the experiment would have to leave the memory for it."""
        active, experiment, waiting = self._loaded.active, self._operator_state.experiment, None
        if experiment is not None and active is not None and desired not in {None, active.bundle.id}:
            needed = self.named - {desired, active.bundle.id}
            if needed and desired != self._operator_state.pin:
                waiting = (
                    f"bundle {desired} waits until experiment {experiment.name} ends, which uses "
                    f"{' and '.join(sorted(self.named))}; at most two bundles are in memory"
                )
        if waiting != self.waiting:
            self.waiting = waiting
            self._loaded.log.info("bundle waits" if waiting else "no bundle waits", detail=waiting)
        return waiting is not None

    async def missing(self) -> str | None:
        """The bundle of an arm that is to be loaded beside the active one; None if there is none, or no room."""
        active = self._loaded.active
        absent = self._absent()
        if active is None or len(absent) != 1 or len(self.named | {active.bundle.id}) > _MOST_BUNDLES:
            return None
        if not await self._loaded.is_here(absent[0]):
            return None
        return None if await self._loaded.is_refused(absent[0]) else absent[0]

    async def load(self, bundle_id: str) -> None:
        """Load a bundle beside the active one, in place of the bundle before it; what prevents it is logged."""
        async with self._changing:
            try:
                self._loaded.keep_beside(await self._loaded.obtain(bundle_id, None))
            except BundleRefused:
                return  # already counted and logged
            except NotReady as error:
                reason = str(error)
            else:
                return
            self._loaded.log.error("bundle not loaded", bundle=bundle_id, detail=reason)

    async def start(self, experiment: Experiment, check: Callable[[], None]) -> None:
        """Load the bundles that the arms name, and run the experiment on all replicas.

        Args:
            experiment: that is to run; where it runs already, nothing changes.
            check: called when all bundles are in memory; raises where they do not fit the experiment.

        Raises:
            Conflict: another one runs.
            BundleRefused: a bundle is missing or bad, or there would be three; the experiment does not run.
            OperatorStateUnavailable: the experiment cannot be written.
            NotReady: no bundle answers, or requests still use the bundle before the previous one.
        """
        async with self._changing:
            await self._operator_state.sync()
            running, definition = self._operator_state.experiment, self._operator_state.definition
            if running is not None and running != experiment:
                raise other_runs(running, experiment)
            absent = self._not_held(experiment.bundles)
            await self._obtain(experiment.bundles)
            try:
                check()
            except Exception:
                loaded = self._loaded.previous
                if loaded is not None and loaded.bundle.id in absent:  # loaded for nothing
                    self._loaded.release(loaded)
                raise
            await self._operator_state.set_experiment(experiment, instead_of=definition)

    def paused(self) -> str | None:
        """Why the running experiment divides no users at the moment; None: it does."""
        absent = self._absent()
        if not absent:
            return None
        refusals = {refusal.bundle: refusal.reason for refusal in self._loaded.refusals}
        reasons = [
            f"bundle {bundle} " + (f"was refused ({refusals[bundle]})" if bundle in refusals else "is not in memory")
            for bundle in absent
        ]
        return f"{'; '.join(reasons)}. All users get the active bundle and are in no arm"

    def _absent(self) -> list[str]:
        """Ids of named bundles that are not in memory, or are altered."""
        return sorted(self._not_held(self.named))

    def _not_held(self, bundles: frozenset[str]) -> frozenset[str]:
        held = (self._loaded.active, self._loaded.previous)
        return bundles - {loaded.bundle.id for loaded in held if loaded is not None and not loaded.altered}

    async def _obtain(self, bundles: frozenset[str]) -> None:
        active = self._loaded.active
        if active is None:
            raise NotReady("no bundle is loaded yet; try again soon")
        others = sorted(bundles - {active.bundle.id})
        if len(others) >= _MOST_BUNDLES:
            raise BundleRefused(
                "bound",
                f"the arms may name the active bundle {active.bundle.id} and one more, as at most two are in memory; "
                f"received {' and '.join(others)}; roll back to one of them first",
            )
        for bundle_id in others:
            self._loaded.keep_beside(await self._loaded.obtain(bundle_id, None, again=True))
