"""Prometheus metrics of bundles: which one is active, how swaps went, what operators set."""

from collections.abc import Callable
from time import time
from weakref import WeakSet

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from index.bundle.bundle import Bundle
from index.bundle.manifest import Manifest
from index.items.modality_status import ModalityStatus
from index.items.slots import BEHAVIOUR
from service.bundles.comparison import BundleFigures, Comparison

_BLOCK_ROWS = 65_536
_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


MissingCounts = dict[tuple[str, str], int]


def count_missing(bundle: Bundle) -> MissingCounts:
    """Number of items that lack a slot, by slot and reason; ``imputed`` behaviour vectors count apart from ``cold``."""
    counts = {reason: np.count_nonzero(bundle.missing == reason, axis=0) for reason in ModalityStatus if reason}
    found = {
        (slot, reason.name.lower()): int(column[number])
        for reason, column in counts.items()
        for number, slot in enumerate(bundle.layout.names)
    }
    if BEHAVIOUR in bundle.layout.names:
        cold = np.flatnonzero(bundle.missing[:, bundle.layout.names.index(BEHAVIOUR)] == ModalityStatus.COLD)
        blocks = (cold[start : start + _BLOCK_ROWS] for start in range(0, cold.size, _BLOCK_ROWS))
        imputed = sum(int(np.count_nonzero(bundle.imputed(rows))) for rows in blocks)
        found[BEHAVIOUR, "imputed"] = imputed
        found[BEHAVIOUR, "cold"] -= imputed
    return found


class BundleMetrics:
    """Metrics that the watcher sets.

    Args:
        registry: registry of the service's metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._active = Gauge("vlm2rec_bundle_info", "1 for the active bundle.", ["bundle"], registry=registry)
        self._items = Gauge("vlm2rec_bundle_items", "Items of the active bundle.", registry=registry)
        self._age = Gauge("vlm2rec_bundle_age_seconds", "Seconds since the active bundle was built.", registry=registry)
        self._missing = Gauge(
            "vlm2rec_bundle_missing_items",
            "Items of the active bundle that lack a slot, by reason; imputed: behaviour is predicted instead.",
            ["slot", "reason"],
            registry=registry,
        )
        self._add_report(registry)
        self._behind = Gauge(
            "vlm2rec_bundle_behind",
            "1 while the active bundle is not the desired one: the pinned, else the registry's current one.",
            registry=registry,
        )
        self._pin = Gauge("vlm2rec_bundle_pin_info", "1 for the pinned bundle.", ["bundle"], registry=registry)
        self._swaps = Counter(
            "vlm2rec_bundle_swaps", "Bundles that were activated in place of another.", registry=registry
        )
        self._refusals = Counter(
            "vlm2rec_bundle_refusals", "Bundles that were refused, by reason.", ["reason"], registry=registry
        )
        self._swap_seconds = Histogram(
            "vlm2rec_bundle_swap_seconds",
            "Seconds from finding a bundle to its activation.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._overlap = Gauge(
            "vlm2rec_shadow_overlap", "Overlap@20 of the last new bundle with the one before.", registry=registry
        )
        self._answered = Gauge(
            "vlm2rec_shadow_answered",
            "Share of histories answered by the old and the new bundle, 0 to 1.",
            ["side"],
            registry=registry,
        )
        self._coverage = Gauge(
            "vlm2rec_shadow_coverage",
            "Coverage of the answers of the old and the new bundle, 0 to 1.",
            ["side"],
            registry=registry,
        )
        self._shares = Gauge(
            "vlm2rec_shadow_slot_share",
            "Slot shares of the old and the new bundle, 0 to 1.",
            ["side", "slot"],
            registry=registry,
        )
        self._hidden = Gauge("vlm2rec_hidden_items", "Items hidden by operators.", registry=registry)
        self._poll_age = Gauge(
            "vlm2rec_watcher_look_age_seconds", "Seconds since the watcher last polled.", registry=registry
        )
        self._registry_age = Gauge(
            "vlm2rec_registry_age_seconds", "Seconds since the registry's pointer was last read.", registry=registry
        )
        self._downloaded = Counter(
            "vlm2rec_bundle_download_bytes", "Bytes of bundles from an object store.", registry=registry
        )
        self._errors = Counter(
            "vlm2rec_watcher_errors", "Failures of the watcher, by what failed.", ["what"], registry=registry
        )
        self._loaded: WeakSet[Bundle] = WeakSet()
        in_memory = Gauge("vlm2rec_bundles_in_memory", "Loaded bundles; at most two.", registry=registry)
        in_memory.set_function(lambda: len(self._loaded))

    def _add_report(self, registry: CollectorRegistry) -> None:
        self._slots = Gauge("vlm2rec_bundle_slot_dims", "Components of a slot.", ["slot"], registry=registry)
        self._figures = Gauge(
            "vlm2rec_bundle_figure",
            "Figures of the active bundle, measured when it was built, as in its report.",
            ["figure"],
            registry=registry,
        )
        self._bounds = Gauge(
            "vlm2rec_bundle_bound", "Bound of a figure, by the figure's name.", ["figure"], registry=registry
        )
        self._shortfalls = Gauge(
            "vlm2rec_bundle_shortfalls", "Figures of the active bundle that miss their bounds.", registry=registry
        )

        self._unused = Gauge(
            "vlm2rec_bundle_unused_modality",
            "1 for a modality that most items have but that hardly counts in the scores, else 0.",
            ["slot"],
            registry=registry,
        )

    def loaded(self, bundle: Bundle) -> None:
        """Count a bundle for as long as it is in memory."""
        self._loaded.add(bundle)

    def activated(self, bundle: Bundle, missing: MissingCounts) -> None:
        """Set the figures of the bundle that is active now.

        Args:
            bundle: the active bundle.
            missing: from :func:`count_missing`, which takes milliseconds and so runs in another thread.
        """
        created = bundle.manifest.created.timestamp()  # a reference to the bundle would keep it in memory
        self._active.clear()
        self._active.labels(bundle.id).set(1)
        self._items.set(len(bundle))
        self._age.set_function(lambda: max(time() - created, 0.0))
        self._report(bundle.manifest)
        self._missing.clear()
        for (slot, reason), count in missing.items():
            self._missing.labels(slot, reason).set(count)

    def _report(self, manifest: Manifest) -> None:
        for gauge in (self._slots, self._figures, self._bounds, self._unused):
            gauge.clear()
        unused = {modality.slot for modality in manifest.unused_modalities}
        for slot, dim in manifest.slots:
            self._slots.labels(slot).set(dim)
            self._unused.labels(slot).set(slot in unused)
        recall = {f"recall.{kind}": value for kind, value in manifest.index.recall.items()}
        for figure, value in (recall | manifest.gate.figures).items():
            self._figures.labels(figure).set(value)
        for check in manifest.checks:
            self._bounds.labels(check.figure).set(check.limit)
        self._shortfalls.set(len(manifest.shortfalls))

    def swapped(self, seconds: float, comparison: Comparison | None) -> None:
        """Count a swap.

        Args:
            seconds: from finding the new bundle to its activation.
            comparison: with the bundle before; None if the new one was in memory already.
        """
        self._swaps.inc()
        self._swap_seconds.observe(seconds)
        if comparison is None:
            return
        if comparison.overlap is not None:
            self._overlap.set(comparison.overlap)
        self._shares.clear()
        self._set_figures("new", comparison.new)
        if comparison.old is not None:
            self._set_figures("old", comparison.old)

    def refused(self, reason: str) -> None:
        """Count a bundle that may not be activated."""
        self._refusals.labels(reason).inc()

    def desired(self, pin: str | None, *, behind: bool) -> None:
        """Set which bundle is pinned, and whether the active bundle is not the desired one."""
        self._pin.clear()
        if pin is not None:
            self._pin.labels(pin).set(1)
        self._behind.set(behind)

    def read_at_scrape(
        self, *, poll_age_s: Callable[[], float], registry_age_s: Callable[[], float], hidden: Callable[[], int]
    ) -> None:
        """Set the functions that are called at every scrape.

        Args:
            poll_age_s: seconds since the last poll.
            registry_age_s: seconds since the registry's pointer was read.
            hidden: number of hidden items.
        """
        self._poll_age.set_function(poll_age_s)
        self._registry_age.set_function(registry_age_s)
        self._hidden.set_function(hidden)

    def downloaded(self, size: int) -> None:
        """Count bytes that arrived from an object store."""
        self._downloaded.inc(size)

    def failed(self, what: str) -> None:
        """Count a failure of the watcher."""
        self._errors.labels(what).inc()

    def _set_figures(self, side: str, figures: BundleFigures) -> None:
        self._answered.labels(side).set(figures.answered)
        self._coverage.labels(side).set(figures.coverage)
        for slot, share in figures.slot_shares.items():
            self._shares.labels(side, slot).set(share)
