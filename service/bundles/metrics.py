"""Prometheus metrics of bundles: which one answers, how swaps went, what operators asked for."""

from collections.abc import Callable
from time import time
from weakref import WeakSet

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from index.bundle.bundle import Bundle
from index.bundle.manifest import Manifest
from index.items.modality_status import ModalityStatus
from service.bundles.comparison import Comparison, Side

_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


Lacking = dict[tuple[str, str], int]


def count_lacking(bundle: Bundle) -> Lacking:
    """Items that lack a slot, by slot and reason."""
    counts = {reason: np.count_nonzero(bundle.missing == reason, axis=0) for reason in ModalityStatus if reason}
    return {
        (slot, reason.name.lower()): int(column[place])
        for reason, column in counts.items()
        for place, slot in enumerate(bundle.layout.names)
    }


class BundleMetrics:
    """What the watcher of bundles counts.

    Args:
        registry: of the service's metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._serving = Gauge("vlm2rec_bundle_info", "1 for the bundle that answers.", ["bundle"], registry=registry)
        self._items = Gauge("vlm2rec_bundle_items", "Items in that bundle.", registry=registry)
        self._age = Gauge("vlm2rec_bundle_age_seconds", "Since that bundle was built.", registry=registry)
        self._lacking = Gauge(
            "vlm2rec_bundle_missing_items",
            "Items of that bundle that lack a slot, by reason.",
            ["slot", "reason"],
            registry=registry,
        )
        self._add_report(registry)
        self._behind = Gauge(
            "vlm2rec_bundle_behind",
            "1 while another bundle should answer: the pinned or pointed-to.",
            registry=registry,
        )
        self._pin = Gauge("vlm2rec_bundle_pin_info", "1 for the pinned bundle.", ["bundle"], registry=registry)
        self._swaps = Counter("vlm2rec_bundle_swaps", "Bundles that took over.", registry=registry)
        self._refusals = Counter(
            "vlm2rec_bundle_refusals", "Bundles that may not serve, by reason.", ["reason"], registry=registry
        )
        self._swap_seconds = Histogram(
            "vlm2rec_bundle_swap_seconds",
            "From finding a bundle to its taking over.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._overlap = Gauge(
            "vlm2rec_shadow_overlap", "Overlap@20 of the last new bundle with the one before.", registry=registry
        )
        self._answered = Gauge(
            "vlm2rec_shadow_answered", "Histories answered, old and new, 0 to 1.", ["side"], registry=registry
        )
        self._coverage = Gauge(
            "vlm2rec_shadow_coverage", "Coverage of the answers, old and new, 0 to 1.", ["side"], registry=registry
        )
        self._shares = Gauge(
            "vlm2rec_shadow_slot_share", "Slot shares, old and new, 0 to 1.", ["side", "slot"], registry=registry
        )
        self._hidden = Gauge("vlm2rec_hidden_items", "Items hidden by operators.", registry=registry)
        self._look_age = Gauge(
            "vlm2rec_watcher_look_age_seconds", "Since the watcher last looked for a bundle.", registry=registry
        )
        self._errors = Counter("vlm2rec_watcher_errors", "Looks that failed, by what.", ["what"], registry=registry)
        self._loaded: WeakSet[Bundle] = WeakSet()
        in_memory = Gauge("vlm2rec_bundles_in_memory", "Loaded bundles; at most two.", registry=registry)
        in_memory.set_function(lambda: len(self._loaded))

    def _add_report(self, registry: CollectorRegistry) -> None:
        self._slots = Gauge("vlm2rec_bundle_slot_dims", "Components of a slot.", ["slot"], registry=registry)
        self._figures = Gauge(
            "vlm2rec_bundle_figure",
            "What that bundle measured of itself when it was built, as in its report.",
            ["figure"],
            registry=registry,
        )
        self._bounds = Gauge(
            "vlm2rec_bundle_bound", "What a figure was held to, by the figure's name.", ["figure"], registry=registry
        )
        self._shortfalls = Gauge(
            "vlm2rec_bundle_shortfalls", "Figures of that bundle that miss their bounds.", registry=registry
        )

    def loaded(self, bundle: Bundle) -> None:
        """Count a bundle for as long as it is in memory."""
        self._loaded.add(bundle)

    def serving(self, bundle: Bundle, lacking: Lacking) -> None:
        """Say which bundle answers now.

        Args:
            bundle: the one.
            lacking: from :func:`count_lacking`; it takes milliseconds, so it is made aside.
        """
        created = bundle.manifest.created.timestamp()  # not the bundle itself, which this would keep in memory
        self._serving.clear()
        self._serving.labels(bundle.id).set(1)
        self._items.set(len(bundle))
        self._age.set_function(lambda: max(time() - created, 0.0))
        self._report(bundle.manifest)
        self._lacking.clear()
        for (slot, reason), count in lacking.items():
            self._lacking.labels(slot, reason).set(count)

    def _report(self, manifest: Manifest) -> None:
        for gauge in (self._slots, self._figures, self._bounds):
            gauge.clear()
        for slot, dim in manifest.slots:
            self._slots.labels(slot).set(dim)
        recall = {f"recall.{kind}": value for kind, value in manifest.index.recall.items()}
        for figure, value in (recall | manifest.gate.figures).items():
            self._figures.labels(figure).set(value)
        for check in manifest.checks:
            self._bounds.labels(check.figure).set(check.limit)
        self._shortfalls.set(len(manifest.shortfalls))

    def swapped(self, seconds: float, comparison: Comparison | None) -> None:
        """Count a bundle that took over.

        Args:
            seconds: from finding it.
            comparison: with the one before; None if it was in memory already.
        """
        self._swaps.inc()
        self._swap_seconds.observe(seconds)
        if comparison is None:
            return
        if comparison.overlap is not None:
            self._overlap.set(comparison.overlap)
        self._shares.clear()
        self._side("new", comparison.new)
        if comparison.old is not None:
            self._side("old", comparison.old)

    def refused(self, reason: str) -> None:
        """Count a bundle that may not serve."""
        self._refusals.labels(reason).inc()

    def wanted(self, pin: str | None, *, behind: bool) -> None:
        """Say what is pinned, and whether another bundle should answer."""
        self._pin.clear()
        if pin is not None:
            self._pin.labels(pin).set(1)
        self._behind.set(behind)

    def ask(self, *, look_age_s: Callable[[], float], hidden: Callable[[], int]) -> None:
        """Say whom to ask at every scrape.

        Args:
            look_age_s: for the seconds since the last look.
            hidden: for the number of hidden items.
        """
        self._look_age.set_function(look_age_s)
        self._hidden.set_function(hidden)

    def failed(self, what: str) -> None:
        """Count a look that failed."""
        self._errors.labels(what).inc()

    def _side(self, name: str, side: Side) -> None:
        self._answered.labels(name).set(side.answered)
        self._coverage.labels(name).set(side.coverage)
        for slot, share in side.slot_shares.items():
            self._shares.labels(name, slot).set(share)
