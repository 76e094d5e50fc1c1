"""Prometheus metrics of live answers: recall of the index, and how much each slot contributes to the scores."""

from collections.abc import Mapping
from math import nan

from prometheus_client import CollectorRegistry, Counter, Gauge


class QualityMetrics:
    """Figures of sampled answers; a figure is absent, or NaN, until it is measured.

    Args:
        registry: registry of the service's metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._recall = Gauge(
            "vlm2rec_recall",
            "Recall@20 of the index on the last checked answers, against exact search, 0 to 1.",
            ["filtered"],
            registry=registry,
        )
        self._checks = Counter(
            "vlm2rec_recall_checks", "Answers that were checked against exact search.", ["filtered"], registry=registry
        )
        self._check_cpu = Counter(
            "vlm2rec_recall_check_cpu_seconds", "Processor seconds that these checks took.", registry=registry
        )
        self._failures = Counter("vlm2rec_sample_failures", "Answers whose measurement failed.", registry=registry)
        self._shares = Gauge(
            "vlm2rec_slot_share",
            "Mean share of a slot in the scores of the last sampled answers, 0 to 1; imputed: of imputed behaviour "
            "vectors, counted apart.",
            ["slot"],
            registry=registry,
        )
        self._balance = Gauge(
            "vlm2rec_slot_balance",
            "The smallest slot share over the largest: 0 if a slot adds nothing, 1 if all add the same.",
            registry=registry,
        )
        self.clear()

    def clear(self) -> None:
        """Clear what was measured on another bundle; counters go on."""
        self._recall.clear()
        self._shares.clear()
        self._balance.set(nan)

    def checked(self, recall: float, *, filtered: bool, cpu_s: float) -> None:
        """Count a check.

        Args:
            recall: mean over the newest checks, this one included, 0 … 1.
            filtered: whether the request had a filter.
            cpu_s: processor seconds that the check took.
        """
        label = "yes" if filtered else "no"
        self._recall.labels(label).set(recall)
        self._checks.labels(label).inc()
        self._check_cpu.inc(cpu_s)

    def slot_shares(self, shares: Mapping[str, float], balance: float) -> None:
        """Set the share of each slot.

        Args:
            shares: share of each slot by name, 0 … 1.
            balance: smallest over largest share, 0 … 1; NaN if there is nothing to compare.
        """
        for name, share in shares.items():
            self._shares.labels(name).set(share)
        self._balance.set(balance)

    def failed(self) -> None:
        """Count a measurement that failed."""
        self._failures.inc()
