"""Weighs the stored history of a user by the types of its events and by their age.

The weight of an event is that of its type, and outside the session window times the long-term factor. Positive weights
count relative to each other: `ResolvedQuery` divides by their mean, so that a history of one type is a plain history.
It is our own extension; the paper has one type of event.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from index.bundle.event_types import EventTypes
from service.stores.protocols import HistoryEntry

ExcludeSeen = bool | Literal["positive"] | frozenset[str]


@dataclass(frozen=True, slots=True)
class HistoryWindow:
    """How much older events of a stored history count.

    Attributes:
        session_s: events at most this many seconds old count in full; also those of a time to come.
        long_term: 0…1, multiplies the weights of older events; 0: they do not shape the query.
    """

    session_s: float
    long_term: float


@dataclass(frozen=True, slots=True)
class StoredHistory:
    """The events of a stored history that count, oldest first.

    Attributes:
        item_ids: of the events.
        weights: as many; above 0 attracts, below 0 pushes away, 0 does not shape the query.
        excluded: items that must not be recommended.
    """

    item_ids: Sequence[str] = ()
    weights: Sequence[float] = ()
    excluded: Collection[str] = ()

    @property
    def positive(self) -> Sequence[str]:
        """The items of the events with a weight above 0."""
        if min(self.weights, default=0) > 0:
            return self.item_ids
        return [item for item, weight in zip(self.item_ids, self.weights, strict=True) if weight > 0]


def weighed(
    entries: Sequence[HistoryEntry],
    types: EventTypes,
    *,
    exclude_seen: ExcludeSeen = True,
    window: HistoryWindow | None = None,
    now: float = 0.0,
) -> StoredHistory:
    """Weigh a stored history.

    Args:
        entries: oldest first; impressions and events of ignored types, which older versions stored, are left out.
        types: what the types mean.
        exclude_seen: True: every item is excluded; ``positive``: those of positive events; a set: those of events of
            these types; False: none. Items whose newest event is negative always are.
        window: None: the age does not count.
        now: seconds since 1970, for the window.
    """
    weights_of, default = types.weights, types.default_weight
    weights = [weights_of.get(entry.type or "", default) for entry in entries]
    if 0.0 in weights:
        kept = [place for place, weight in enumerate(weights) if weight != 0]
        entries, weights = [entries[place] for place in kept], [weights[place] for place in kept]
    item_ids = [entry.item_id for entry in entries]
    excluded = _excluded(entries, item_ids, weights, types, exclude_seen)
    if window is not None:
        oldest = now - window.session_s
        weights = [
            weight if entry.timestamp >= oldest else weight * window.long_term
            for entry, weight in zip(entries, weights, strict=True)
        ]
    return StoredHistory(item_ids, weights, excluded)


def _excluded(
    entries: Sequence[HistoryEntry],
    item_ids: Sequence[str],
    weights: Sequence[float],
    types: EventTypes,
    exclude_seen: ExcludeSeen,
) -> Collection[str]:
    if exclude_seen is True:
        return set(item_ids)
    newest = dict(zip(item_ids, weights, strict=True))  # of equal keys the last one counts
    excluded = {item for item, weight in newest.items() if weight < 0}
    if exclude_seen == "positive":
        excluded |= {item for item, weight in zip(item_ids, weights, strict=True) if weight > 0}
    elif exclude_seen:
        excluded |= {entry.item_id for entry in entries if (entry.type or types.default_type) in exclude_seen}
    return excluded


def relative(weights: Sequence[float], newest: int) -> Sequence[float]:
    """Weights divided by the mean of the newest positive ones; all 1 if these are equal.

    Args:
        weights: oldest first.
        newest: how many positive weights shape the query.
    """
    if newest <= 0 or weights.count(1) == len(weights):
        return weights
    positive = [weight for weight in weights if weight > 0][-newest:]
    if not positive:
        return weights
    # Not the sum over the number where all are equal: it is rounded, and the weights would not be exactly 1.
    mean = positive[0] if len(set(positive)) == 1 else sum(positive) / len(positive)
    return [weight / mean for weight in weights]
