"""Trial: what a bundle goes through before it may answer: load, hash, warm up, compare; all of it aside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from index.allowed import Allowed
from index.bundle import Bundle
from service.bundle_metrics import Lacking, count_lacking
from service.errors import BundleRefused
from service.hidden import Snapshot, available_rows
from service.shadow import Comparison, History, Shadow, ShadowBounds, compare
from service.source import refusal


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """How a bundle is tried.

    Attributes:
        old: what answers now; None: nothing does yet.
        hidden: the hidden items.
        recent: histories to compare on, of item ids.
        probes: how many probes stand in for them.
        bounds: what the new bundle is held to beside the old one; None: the operator asked for this very bundle.
        hash_all: hash every file before it answers; nothing waits for it.
        stop: asked now and then; True ends the trial.
    """

    old: Shadow | None
    hidden: Snapshot
    recent: Sequence[History]
    probes: int
    bounds: ShadowBounds | None
    hash_all: bool
    stop: Callable[[], bool]


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
    available: Allowed
    comparison: Comparison
    verified: bool
    lacking: Lacking


def run_trial(bundle: Bundle, trial: Trial) -> Passed | BundleRefused:
    """Try a loaded bundle, for a thread in the background.

    Returns:
        A refusal is given back, not raised: the traceback of an exception would keep the bundle in memory.
    """
    try:
        return _pass(bundle, trial)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in here, the bundle that serves stays
        found = refusal(error)
        return BundleRefused(found.reason, str(found))


def _pass(bundle: Bundle, trial: Trial) -> Passed:
    verified = trial.hash_all and bundle.verify_in_full(trial.stop)
    bundle.warm_up()
    available = available_rows(bundle, trial.hidden.ids)
    shadow = Shadow(bundle, available if trial.hidden.ids else None)
    comparison = compare(shadow, trial.old, trial.recent, probes=trial.probes)
    if trial.bounds is not None:
        trial.bounds.check(comparison)
    return Passed(bundle, available, comparison, verified, count_lacking(bundle))
