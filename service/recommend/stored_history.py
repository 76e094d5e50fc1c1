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
    histories: Sequence[Sequence[HistoryEntry]],
    types: EventTypes,
    *,
    exclude_seen: ExcludeSeen = True,
    window: HistoryWindow | None = None,
    now: float = 0.0,
) -> StoredHistory:
    """Weigh stored histories as one.

    Args:
        histories: one after the other, as of a user and a session, each oldest first; impressions and events of ignored
            types, which older versions stored, are left out.
        types: what the types mean.
        exclude_seen: True: every item is excluded; ``positive``: those of positive events; a set: those of events of
            these types; False: none. Items whose newest event is negative always are; of several histories that of the
            latest time counts, and of one history the last, as an event that is late is the last.
        window: None: the age does not count.
        now: seconds since 1970, for the window.
    """
    entries = histories[0] if len(histories) == 1 else [entry for history in histories for entry in history]
    weights_of, default = types.weights, types.default_weight
    weights = [weights_of.get(entry.type or "", default) for entry in entries]
    if 0.0 in weights:
        kept = [place for place, weight in enumerate(weights) if weight != 0]
        entries, weights = [entries[place] for place in kept], [weights[place] for place in kept]
    item_ids = [entry.item_id for entry in entries]
    excluded = _excluded(histories, entries, weights, types, exclude_seen)
    if window is not None:
        oldest = now - window.session_s
        weights = [
            weight if entry.timestamp >= oldest else weight * window.long_term
            for entry, weight in zip(entries, weights, strict=True)
        ]
    return StoredHistory(item_ids, weights, excluded)


def _excluded(
    histories: Sequence[Sequence[HistoryEntry]],
    entries: Sequence[HistoryEntry],
    weights: Sequence[float],
    types: EventTypes,
    exclude_seen: ExcludeSeen,
) -> Collection[str]:
    """The excluded items.

    Args:
        histories: all of them.
        entries: those that have a weight.
        weights: as many, of the entries.
        types: what the types mean.
        exclude_seen: as for :func:`weighed`.
    """
    if exclude_seen is True:
        return {entry.item_id for entry in entries}
    excluded = _disliked(histories, types)
    if exclude_seen == "positive":
        excluded |= {entry.item_id for entry, weight in zip(entries, weights, strict=True) if weight > 0}
    elif exclude_seen:
        excluded |= {entry.item_id for entry in entries if types.is_among(entry.type, exclude_seen)}
    return excluded


def _disliked(histories: Sequence[Sequence[HistoryEntry]], types: EventTypes) -> set[str]:
    """The items whose newest event is negative."""
    weights_of, default = types.weights, types.default_weight
    newest: dict[str, tuple[float, float]] = {}
    for history in histories:
        # Of equal items the last one counts. The order is not that of the times where an event was late.
        of_history = {
            entry.item_id: (entry.timestamp, weight)
            for entry in history
            if (weight := weights_of.get(entry.type or "", default))
        }
        for item, found in of_history.items():
            before = newest.get(item)
            if before is None or found[0] >= before[0]:
                newest[item] = found
    return {item for item, (_, weight) in newest.items() if weight < 0}


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
