"""Reads what answers brought, by one dimension, over a period of whole hours."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.outcomes.counts import HOUR_S, LEFT_OUT, REVENUE_UNIT, Dimension, experiment_hash, hash_of
from service.stores.outcomes.outcome_store import OutcomeStore

LONGEST_S: Final = 31 * 86_400
"""Longest period that may be read at once."""
COUNTED: Final = ("answers", "shown", "impressions", "clicks", "conversions")

_GROUP: Final = re.compile(r"[0-9]{1,3}")
_REVENUE: Final = "revenue"
_REASONS: Final = {"answers": ("sampled", "dropped", "failed", "evicted"), "events": ("dropped", "failed")}


@dataclass(frozen=True, slots=True)
class Period:
    """Hours whose answers are counted.

    Attributes:
        first: hours since 1970 of the first one.
        last: of the last one; at least ``first``.
    """

    first: int
    last: int

    @classmethod
    def of(cls, start: float, end: float) -> "Period":
        """The hours that have a moment in start … end, seconds since 1970, the end itself left out."""
        return cls(int(start // HOUR_S), max(int(start // HOUR_S), -int(-end // HOUR_S) - 1))

    @property
    def start(self) -> int:
        """Seconds since 1970 at its beginning."""
        return self.first * HOUR_S

    @property
    def end(self) -> int:
        """Seconds since 1970 at its end."""
        return (self.last + 1) * HOUR_S


async def breakdown(store: OutcomeStore, period: Period, by: Dimension) -> list[dict[str, Any]]:
    """What answers brought, one entry for each value of a dimension.

    Args:
        store: has the counts.
        period: of the answers.
        by: the dimension.

    Returns:
        By label: counts and revenue, and rates where they are defined. Click and conversion rates are per impression
        where there are impressions, else per shown item.

    Raises:
        OutcomesUnavailable: the store does not answer.
    """
    totals = await _totals(store, period, by)
    return [_entry(label, totals[label]) for label in _sorted(totals)]


async def left_out(store: OutcomeStore, period: Period) -> dict[str, dict[str, int]]:
    """How many answers and events of a period are not counted, by reason; see `OutcomeCounts.left_out`.

    Raises:
        OutcomesUnavailable: the store does not answer.
    """
    totals = await _totals(store, period, LEFT_OUT)
    return {what: {reason: totals[what][reason] for reason in reasons} for what, reasons in _REASONS.items()}


async def _totals(store: OutcomeStore, period: Period, by: str) -> dict[str, dict[str, int]]:
    """Counts of all hours of a period by label and measure; 0 for all others."""
    names = [hash_of(hour, by) for hour in range(period.first, period.last + 1)]
    totals: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for counts in await store.counts(names):
        for field, amount in counts.items():
            label, _, measure = field.rpartition("|")
            totals[label][measure] += amount
    return totals


def _entry(label: str, counts: Mapping[str, int]) -> dict[str, Any]:
    entry: dict[str, Any] = {"value": label, **{measure: counts.get(measure, 0) for measure in COUNTED}}
    entry[_REVENUE] = round(counts.get(_REVENUE, 0) * REVENUE_UNIT, 3)
    seen = entry["impressions"] or entry["shown"]
    entry["click_rate"] = entry["clicks"] / seen if seen else None
    entry["conversion_rate"] = entry["conversions"] / seen if seen else None
    return entry


def _sorted(labels: Iterable[str]) -> list[str]:
    """By number where labels begin with one, else by name."""

    def key(label: str) -> tuple[int, int, str]:
        number = label.partition("-")[0]
        return (0, int(number), label) if number.isascii() and number.isdigit() and len(number) <= 3 else (1, 0, label)

    return sorted(labels, key=key)


async def experiment_counts(store: OutcomeStore, name: str) -> list[dict[str, Any]]:
    """What was counted for an experiment, by arm and group of users.

    Returns:
        One entry for each arm and group with answers: ``arm``, ``group`` and the measures; revenue in money.

    Raises:
        OutcomesUnavailable: the store does not answer.
    """
    (counts,) = await store.counts([experiment_hash(name)])
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for field, amount in counts.items():
        arm, _, rest = field.partition("|")
        group, _, measure = rest.partition("|")
        if _GROUP.fullmatch(group):
            found.setdefault((arm, int(group)), {"arm": arm, "group": int(group)})[measure] = (
                round(amount * REVENUE_UNIT, 3) if measure == _REVENUE else amount
            )
    return [found[key] for key in sorted(found)]
