"""Validates a loaded bundle before it is activated: hashes it, warms it up and compares it with the active one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from index.bundle.bundle import Bundle
from index.search.row_mask import RowMask
from service.bundles.comparison import AskOld, ComparedBundle, Comparison, ShadowBounds, ask_here, compare
from service.bundles.loader import refusal
from service.bundles.metrics import MissingCounts, count_missing
from service.errors import BundleRefused
from service.recommend.hidden_items import HiddenSnapshot, available_rows
from service.recommend.recent_histories import History
from service.retrieval.faiss_retriever import FAISS
from service.retrieval.retriever import Retriever


@dataclass(frozen=True, slots=True, eq=False)
class BundleValidation:
    """How a bundle is validated.

    Attributes:
        old: the active bundle; None: there is none yet.
        hidden: the hidden items.
        recent: histories of item ids on which the bundles are compared.
        evaluation_queries: how many evaluation queries are used if there are no recent histories.
        bounds: for the comparison; None: an operator asked for exactly this bundle.
        hash_all: hash every file before the bundle is activated; nobody waits for it.
        stop: called now and then; True ends the validation.
        ask_old: runs a query of the old bundle in the thread that may use its encoder.
        retriever: finds the items.
    """

    old: ComparedBundle | None
    hidden: HiddenSnapshot
    recent: Sequence[History]
    evaluation_queries: int
    bounds: ShadowBounds | None
    hash_all: bool
    stop: Callable[[], bool] = lambda: False
    ask_old: AskOld = ask_here
    retriever: Retriever = FAISS


@dataclass(frozen=True, slots=True, eq=False)
class ValidBundle:
    """A bundle that may be activated.

    Attributes:
        bundle: loaded and warm.
        available: the rows that are not hidden.
        comparison: with the bundle that was active meanwhile.
        verified: whether every file was hashed.
        missing: number of items that lack a slot.
    """

    bundle: Bundle
    available: RowMask
    comparison: Comparison
    verified: bool
    missing: MissingCounts


def prepare(bundle: Bundle, validation: BundleValidation) -> bool | BundleRefused:
    """Hash a loaded bundle and warm it up; nearly all of it runs without the interpreter's lock.

    Returns:
        Whether every file was hashed. A refusal is returned, not raised, here and below: the traceback of an exception
        would keep the bundle in memory.
    """
    try:
        verified = validation.hash_all and bundle.verify_in_full(validation.stop)
        validation.retriever.warm_up(bundle)
    except Exception as error:  # noqa: BLE001 - the active bundle stays, whatever the error
        return _without_traceback(error)
    return verified


def validate(bundle: Bundle, validation: BundleValidation, *, verified: bool) -> ValidBundle | BundleRefused:
    """Compare a warm bundle with the active one and check the bounds."""
    try:
        available = available_rows(bundle, validation.hidden.ids)
        comparison = compare(
            ComparedBundle(bundle, available if validation.hidden.ids else None, validation.retriever),
            validation.old,
            validation.recent,
            evaluation_queries=validation.evaluation_queries,
            ask_old=validation.ask_old,
        )
        if validation.bounds is not None:
            validation.bounds.check(comparison)
        bundle.files.check_sizes()
        return ValidBundle(bundle, available, comparison, verified, count_missing(bundle))
    except Exception as error:  # noqa: BLE001 - the active bundle stays, whatever the error
        return _without_traceback(error)


def _without_traceback(error: Exception) -> BundleRefused:
    found = refusal(error)
    return BundleRefused(found.reason, str(found))
