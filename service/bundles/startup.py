"""Startup: the bundle to begin with, chosen before anything is answered."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from index.bundle.bundle import Bundle
from service.bundles.loader import BundleLoader, Identity
from service.bundles.operator_state import OperatorState, OperatorStateCopy
from service.bundles.refusals import Refusal
from service.bundles.validation import BundleValidation, judge, prepare
from service.errors import BundleRefused, OperatorStateUnavailable, StartError
from service.recommend.hidden_items import Snapshot

START_TIMEOUT_S: Final = 5.0
"""Seconds that Redis may take for pin and hidden items at the start, where its usual limit is shorter."""

_PROBES = 20  # enough to see that a bundle answers, few enough to be ready soon


@dataclass(frozen=True, slots=True, eq=False)
class Startup:
    """What a service begins with.

    Attributes:
        bundle: loaded and warm; None: the service waits for one.
        identity: which publishing of that id it is.
        verified: whether every file was hashed.
        refusals: bundles that should have served instead and could not.
        operator_state: pin and hidden items by which the bundle was chosen; None: not read.
    """

    bundle: Bundle | None = None
    identity: Identity = ()
    verified: bool = False
    refusals: tuple[Refusal, ...] = ()
    operator_state: OperatorStateCopy | None = None


def read_operator_state(open_state: Callable[[], OperatorState]) -> OperatorStateCopy:
    """Pin and hidden items of all replicas, before there is an event loop; the local copy if the store fails.

    Args:
        open_state: with a limit of `START_TIMEOUT_S` at least: nothing waits for an answer yet, and a store that is
            only slow must not let an unpinned bundle or a hidden item be answered.
    """

    async def read() -> OperatorStateCopy:
        state = open_state()
        try:
            with suppress(OperatorStateUnavailable):
                await state.sync()
        finally:
            await state.close()
        return state.copy()

    return asyncio.run(read())


def open_first(source: BundleLoader, pin: str | None, *, wait: bool) -> Startup:
    """Load the bundle that should serve; where it is bad, the newest good one before it: less is better than nothing.

    Args:
        source: where bundles are.
        pin: id of the pinned bundle; None: the pointer's should serve.
        wait: begin without a bundle where there is none, instead of failing.

    Raises:
        StartError: nothing is published, and that is not waited for.
        BundleRefused: every bundle is bad, and a good one is not waited for; tells of the one that should serve.
        RegistryError: the registry cannot be read.
    """
    refusals: list[Refusal] = []
    first: BundleRefused | None = None
    for bundle_id in _candidates(source, pin):
        identity = source.identity(bundle_id)
        try:
            bundle = _try(source, bundle_id)
        except BundleRefused as error:
            refusals.append(Refusal.of(bundle_id, identity, error))
            first = first or error
            continue
        return Startup(bundle, identity, source.hashes_all, tuple(refusals))
    if wait:
        return Startup(refusals=tuple(refusals))
    if first is not None:
        raise first
    raise StartError(
        f"no bundle is published in {source.root}; publish one with `vlm2rec index publish BUNDLE "
        f"--registry {source.root}`, or set VLM2REC_WAIT_FOR_BUNDLE to wait for one"
    )


def _candidates(source: BundleLoader, pin: str | None) -> Iterator[str]:
    """Ids in the order in which they should serve, each once."""
    pointed = source.pointed()
    wanted = pin or pointed
    if wanted is None:
        return
    earlier = source.earlier(wanted)
    yield wanted
    yield from earlier
    if pointed is not None and pointed != wanted and pointed not in earlier:
        yield pointed


def _try(source: BundleLoader, bundle_id: str) -> Bundle:
    bundle = source.load(bundle_id)
    trial = BundleValidation(
        old=None, hidden=Snapshot(frozenset(), 0), recent=(), probes=_PROBES, bounds=None, hash_all=False
    )
    prepared = prepare(bundle, trial)
    if isinstance(prepared, BundleRefused):
        raise prepared
    found = judge(bundle, trial, verified=prepared)
    if isinstance(found, BundleRefused):
        raise found
    return bundle
