"""The form in which events are sent to the scripts of Redis and in which histories and streams are read back."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.settings.groups import HistorySettings
from service.stores.history_keys import BUCKETS, bucket_cap, dropped_at_once
from service.stores.protocols import Event, HistoryEntry, StoredIn

Arguments = list[str | int]

MOST_MERGES: Final = 1000
"""Merged sessions of one user."""

_SEPARATOR: Final = "\x1f"
_LIST_OF: Final[Mapping[StoredIn, int]] = {"stream": 0, "history": 1, "impressions": 4}  # fields of UserKeys


def append_caps(retention: HistorySettings) -> tuple[int, ...]:
    """The first ten arguments of `APPEND`."""
    return (
        retention.history_cap,
        retention.event_ids_cap,
        retention.ttl_s,
        *stream_caps(retention),
        BUCKETS,
        retention.late_s,
        retention.impressions_cap,
        retention.impressions_ttl_s,
        retention.session_ttl_s,
    )


def merge_caps(retention: HistorySettings) -> tuple[int, ...]:
    """The first nine arguments of `MERGE`."""
    return (
        *(retention.history_cap, retention.event_ids_cap, retention.impressions_cap, MOST_MERGES),
        *(retention.ttl_s, retention.impressions_ttl_s, retention.session_ttl_s),
        *stream_caps(retention),
    )


def stream_caps(retention: HistorySettings) -> tuple[int, int]:
    """The cap of a bucket's stream, and how many entries it drops at once."""
    cap = bucket_cap(retention.stream_cap)
    return cap, dropped_at_once(cap)


def event_arguments(event: Event, first_key: int) -> Arguments:
    """The twelve arguments of an event in `APPEND`; `first_key`: position of the first key of its user."""
    timestamp, kind = _number(event.timestamp), event.type or ""
    return [
        first_key,
        event.event_id or "",
        f"{event.item_id}{_SEPARATOR}{timestamp}{_SEPARATOR}{kind}",
        event.user_id,
        event.item_id,
        timestamp,
        kind,
        event.request_id or "",
        _LIST_OF[event.stored_in],
        event.session_id or "",
        "" if event.value is None else _number(event.value),
        event.arm or "",
    ]


def entries_of(found: Sequence[str]) -> list[HistoryEntry]:
    """The entries of a stored history."""
    try:
        parts = [stored.split(_SEPARATOR) for stored in found]
        return [HistoryEntry(item_id, float(timestamp), kind or None) for item_id, timestamp, kind in parts]
    except ValueError:  # another program wrote something else into the key
        return [_entry(stored) for stored in found]


def event_of(fields: Sequence[str]) -> Event:
    """The event of an entry of a stream, from alternating names and values."""
    found: dict[str, Any] = dict(zip(fields[::2], (value or None for value in fields[1::2]), strict=True))
    value = found.get("value")
    numbers = {"timestamp": _seconds(found["timestamp"] or ""), "value": None if value is None else _seconds(value)}
    return Event(**{**found, **numbers})


def _number(value: float) -> str:
    """Seconds or a value in the shortest decimal form, at most to the thousandth."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _entry(stored: str) -> HistoryEntry:
    item_id, timestamp, kind, *_ = f"{stored}{_SEPARATOR}{_SEPARATOR}".split(_SEPARATOR)
    return HistoryEntry(item_id, _seconds(timestamp), kind or None)


def _seconds(stored: str) -> float:
    """The stored number; 0 if another program wrote something else into the key."""
    try:
        return float(stored)
    except ValueError:
        return 0.0
