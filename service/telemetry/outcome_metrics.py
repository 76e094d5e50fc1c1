"""Prometheus metrics of answers that are kept and of what they brought."""

from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter

_MOST_VALUES: Final = 64
_OTHER: Final = "other"
_REVENUE: Final = "revenue"
_REVENUE_UNIT: Final = 0.001


class OutcomeMetrics:
    """Counts of kept answers and their outcomes.

    Args:
        registry: gets the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._answers = Counter(
            "vlm2rec_outcome_answers",
            "Answers by whether they are kept for their outcomes.",
            ["result"],
            registry=registry,
        )
        self._events = Counter(
            "vlm2rec_outcome_events",
            "Events that may be outcomes, by what became of them.",
            ["result"],
            registry=registry,
        )
        self._outcomes = Counter(
            "vlm2rec_outcomes",
            "Kept answers, their items and outcomes, by one dimension.",
            ["by", "value", "outcome"],
            registry=registry,
        )
        self._revenue = Counter(
            "vlm2rec_outcome_revenue",
            "Sum of the values of conversions, by one dimension.",
            ["by", "value"],
            registry=registry,
        )
        self._refused = Counter(
            "vlm2rec_outcome_counts_refused",
            "Increments of counts that Redis refused, as the count is full or no number.",
            registry=registry,
        )
        self._values: dict[str, set[str]] = {}
        self._outcomes_of = cache(self._outcomes.labels)
        self._revenue_of = cache(self._revenue.labels)

    def answer(self, result: str, amount: int = 1) -> None:
        """Count answers: kept, dropped as the queue is full, failed as Redis does not answer, sampled or evicted."""
        self._answers.labels(result).inc(amount)

    def event(self, result: str, amount: int = 1) -> None:
        """Count events: attributed, duplicate, unattributed, dropped or failed."""
        self._events.labels(result).inc(amount)

    def refused(self, amount: int) -> None:
        """Count increments that Redis refused, see `OutcomeStore.add`."""
        self._refused.inc(amount)

    def counted(self, by: str, value: str, measure: str, amount: int) -> None:
        """Add to the counts by a dimension; values beyond the first 64 of a dimension are counted as other.

        Args:
            by: position, bundle, arm, strategy or slot.
            value: of the dimension.
            measure: answers, shown, impressions, clicks, conversions, or revenue in thousandths.
            amount: at least 1.
        """
        known = self._values.setdefault(by, set())
        if value not in known:
            if len(known) >= _MOST_VALUES:
                value = _OTHER
            else:
                known.add(value)
        if measure == _REVENUE:
            self._revenue_of(by, value).inc(amount * _REVENUE_UNIT)
        else:
            self._outcomes_of(by, value, measure).inc(amount)
