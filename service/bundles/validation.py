"""BundleValidation: what a bundle goes through before it may answer: load, hash, warm up, compare; all of it aside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from index.bundle.bundle import Bundle
from index.search.row_mask import RowMask
from service.bundles.comparison import AskOld, Comparison, Shadow, ShadowBounds, ask_here, compare
from service.bundles.loader import refusal
from service.bundles.metrics import Lacking, count_lacking
from service.errors import BundleRefused
from service.recommend.hidden_items import Snapshot, available_rows
from service.recommend.recent_histories import History


@dataclass(frozen=True, slots=True, eq=False)
class BundleValidation:
    """How a bundle is tried.

    Attributes:
        old: what answers now; None: nothing does yet.
        hidden: the hidden items.
        recent: histories to compare on, of item ids.
        probes: how many probes stand in for them.
        bounds: what the new bundle is held to beside the old one; None: the operator asked for this very bundle.
        hash_all: hash every file before it answers; nothing waits for it.
        stop: asked now and then; True ends the trial.
        ask_old: runs a question to the old bundle in the thread that may touch it.
    """

    old: Shadow | None
    hidden: Snapshot
    recent: Sequence[History]
    probes: int
    bounds: ShadowBounds | None
    hash_all: bool
    stop: Callable[[], bool] = lambda: False
    ask_old: AskOld = ask_here


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """A bundle that may answer.

    Attributes:
        bundle: loaded and warm.
        available: the rows that are not hidden.
        comparison: with what answered while it was tried.
        verified: whether every file was hashed.
        lacking: items that lack a slot.
    """

    bundle: Bundle
    available: RowMask
    comparison: Comparison
    verified: bool
    lacking: Lacking


def prepare(bundle: Bundle, trial: BundleValidation) -> bool | BundleRefused:
    """Hash a loaded bundle and warm it up; almost all of it without the interpreter's lock.

    Returns:
        Whether every file was hashed. A refusal is given back, not raised, here and below: the traceback of an
        exception would keep the bundle in memory.
    """
    try:
        verified = trial.hash_all and bundle.verify_in_full(trial.stop)
        bundle.warm_up()
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in here, the bundle that serves stays
        return _bare(error)
    return verified


def judge(bundle: Bundle, trial: BundleValidation, *, verified: bool) -> Passed | BundleRefused:
    """Ask a warm bundle beside the one that answers."""
    try:
        available = available_rows(bundle, trial.hidden.ids)
        shadow = Shadow(bundle, available if trial.hidden.ids else None)
        comparison = compare(shadow, trial.old, trial.recent, probes=trial.probes, ask_old=trial.ask_old)
        if trial.bounds is not None:
            trial.bounds.check(comparison)
        bundle.files.check_sizes()
        return Passed(bundle, available, comparison, verified, count_lacking(bundle))
    except Exception as error:  # noqa: BLE001 - likewise
        return _bare(error)


def _bare(error: Exception) -> BundleRefused:
    found = refusal(error)
    return BundleRefused(found.reason, str(found))
