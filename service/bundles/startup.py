"""Chooses and loads the first bundle, before the service accepts requests."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from index.bundle.bundle import Bundle
from service.bundles.loader import BundleLoader, Identity
from service.bundles.operator_state import OperatorState, OperatorStateCopy
from service.bundles.refusals import BundleRefusal
from service.bundles.validation import BundleValidation, prepare, validate
from service.bundles.worker_bundles import BundleVerdict, WorkerBundles
from service.errors import RETRIED, BundleRefused, OperatorStateUnavailable, RetrieverUnavailable, StartError
from service.recommend.hidden_items import HiddenSnapshot

START_TIMEOUT_S: Final = 5.0
"""Shortest timeout in seconds for reading the operator state at the start."""

_EVALUATION_QUERIES = 20  # enough to see that a bundle answers, few enough to be ready soon


@dataclass(frozen=True, slots=True, eq=False)
class Startup:
    """The bundle that a service starts with.

    Attributes:
        bundle: loaded and warm; None: the service waits for one.
        identity: which publication of that id it is.
        verified: whether every file was hashed.
        refusals: bundles that had precedence and were refused.
        operator_state: pin and hidden items by which the bundle was chosen; None: not read.
    """

    bundle: Bundle | None = None
    identity: Identity = ()
    verified: bool = False
    refusals: tuple[BundleRefusal, ...] = ()
    operator_state: OperatorStateCopy | None = None


def read_operator_state(open_state: Callable[[], OperatorState]) -> OperatorStateCopy:
    """The operator state of all replicas, read before there is an event loop; the local copy if the store fails.

    Args:
        open_state: opens it with a timeout of at least `START_TIMEOUT_S`: no request waits yet, and a store that is
            only slow must not lead to serving another bundle than the pinned one, or a hidden item.
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


def load_first(loader: BundleLoader, pin: str | None, workers: WorkerBundles | None = None) -> Startup:
    """Load the desired bundle; if it is refused, the newest good one before it.

    Args:
        loader: loads bundles from the registry; its settings tell whether to start without a good bundle.
        pin: id of the pinned bundle; None: the registry's current bundle is desired.
        workers: what the worker processes of one service agree on: one that replaces another starts with the bundle of
            the others. None: there is only this process.

    Raises:
        StartError: nothing is published, and `wait_for_bundle` is off.
        BundleRefused: every bundle is refused, and `wait_for_bundle` is off; it is the refusal of the desired bundle.
        RegistryError: the registry cannot be read.
    """
    refusals: list[BundleRefusal] = []
    first: BundleRefused | None = None
    followed = None if workers is None else workers.followed(None)
    for bundle_id in dict.fromkeys([*([] if followed is None else [followed]), *_candidates(loader, pin)]):
        identity = loader.identity(bundle_id)
        try:
            bundle, verified = _load_in_turn(loader, bundle_id, workers)
        except BundleRefused as error:
            refusals.append(BundleRefusal.of(bundle_id, identity, error))
            first = first or error
            continue
        return Startup(bundle, identity, verified, tuple(refusals))
    if loader.settings.wait_for_bundle:
        return Startup(refusals=tuple(refusals))
    if first is not None:
        raise first
    raise StartError(
        f"no bundle is published in {loader.location}; publish one with `vlm2rec index publish BUNDLE "
        f"--registry {loader.location}`, or set VLM2REC_WAIT_FOR_BUNDLE to wait for one"
    )


def _candidates(loader: BundleLoader, pin: str | None) -> Iterator[str]:
    """Ids in order of precedence, each once."""
    current = loader.last_current()
    desired = pin or current
    if desired is None:
        return
    earlier = loader.earlier(desired)
    yield desired
    yield from earlier
    if current is not None and current != desired and current not in earlier:
        yield current


def _load_in_turn(loader: BundleLoader, bundle_id: str, workers: WorkerBundles | None) -> tuple[Bundle, bool]:
    """A bundle, and whether every file was hashed; the first worker validates it, the others follow its verdict."""
    if workers is None:
        return _load(loader, bundle_id), loader.hashes_all
    workers.hold([bundle_id])
    with workers.blocking_turn():
        key = workers.key_of(bundle_id)
        known = workers.verdict(key)
        if known is None or known.reason in RETRIED:
            try:
                bundle = _load(loader, bundle_id)
            except BundleRefused as error:
                workers.record(key, BundleVerdict(error.reason, str(error)))
                raise
            workers.record(key, BundleVerdict(hashed=loader.hashes_all))
            return bundle, loader.hashes_all
    refused = known.refusal()
    if refused is not None:
        raise refused
    return _load(loader, bundle_id, verified=known.hashed), known.hashed


def _load(loader: BundleLoader, bundle_id: str, *, verified: bool = False) -> Bundle:
    answers = _is_searchable(loader, bundle_id)
    bundle = loader.load(bundle_id, verified=verified)
    if not answers:
        bundle.warm_up(search=lambda *_, **__: None)
        return bundle
    validation = BundleValidation(
        old=None,
        hidden=HiddenSnapshot(frozenset(), 0),
        recent=(),
        evaluation_queries=_EVALUATION_QUERIES,
        bounds=None,
        hash_all=False,
        retriever=loader.retriever,
    )
    prepared = prepare(bundle, validation)
    if isinstance(prepared, BundleRefused):
        raise prepared
    valid = validate(bundle, validation, verified=prepared)
    if isinstance(valid, BundleRefused):
        raise valid
    return bundle


def _is_searchable(loader: BundleLoader, bundle_id: str) -> bool:
    """Whether the items of a bundle can be searched; False: the store that is searched does not answer.

    The service starts then all the same: popular items until the store answers are more than no answer.

    Raises:
        BundleRefused: the store answers, and cannot search these items.
    """
    try:
        loader.retriever.check(bundle_id)
    except RetrieverUnavailable:
        return False
    return True
