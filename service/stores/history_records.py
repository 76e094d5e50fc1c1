"""The form in which events are sent to the scripts of Redis and in which histories and streams are read back."""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from service.settings.groups import HistorySettings
from service.stores.history_keys import BUCKETS, bucket_cap, dropped_at_once, event_keys, keys_of
from service.stores.protocols import Event, HistoryEntry, session_of, sessions_among
from service.stores.redis_history_scripts import APPEND_ONE
from service.stores.redis_pipeline import Script

Arguments = list[str | int | bytes]

MOST_MERGES: Final = 1000
"""Merged sessions of one user."""

_SEPARATOR: Final = "\x1f"
_LAST: Final = "last"  # the end of the history: an event without a time comes after all that arrived before it
_KEYS_OF_USER: Final = 4


class AppendCall(NamedTuple):
    """A call of `APPEND`, without the keys of the old layout.

    Attributes:
        keys: as the script expects them.
        arguments: those of :func:`append_caps` not among them.
        owners: users and sessions in the order of their keys.
    """

    keys: list[str]
    arguments: Arguments
    owners: Sequence[str]


def append_caps(retention: HistorySettings) -> tuple[int, ...]:
    """The first ten arguments of `APPEND`."""
    return (
        retention.history_cap,
        -retention.event_ids_cap - 1,
        retention.ttl_s,
        *stream_caps(retention),
        BUCKETS,
        retention.late_s,
        retention.impressions_cap,
        retention.impressions_ttl_s,
        retention.session_ttl_s,
    )


def append_one(retention: HistorySettings) -> Script:
    """The script that stores one event."""
    text = {
        "oldest_kept": -retention.history_cap,
        "oldest_impression": -retention.impressions_cap,
        "surplus_rank": -retention.event_ids_cap - 1,
        "ttl": retention.ttl_s,
        "impressions_ttl": retention.impressions_ttl_s,
        "session_ttl": retention.session_ttl_s,
    }
    stream_cap, at_once = stream_caps(retention)
    numbers = {
        "history_cap": retention.history_cap,
        "stream_cap": stream_cap,
        "at_once": at_once,
        "late_s": retention.late_s,
        "impressions_cap": retention.impressions_cap,
    }
    constants = [f"local {name} = '{value}'\n" for name, value in text.items()]
    constants += [f"local {name} = {value}\n" for name, value in numbers.items()]
    return Script("".join(constants) + APPEND_ONE)


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


def append_call(prefix: str, old_stream: str, events: Sequence[Event]) -> AppendCall:
    """The call that stores these events.

    Args:
        prefix: of the keys.
        old_stream: key of the stream of the old layout.
        events: in the order of their timestamps.

    Raises:
        UnicodeEncodeError: an id of a user cannot be encoded in UTF-8.
        orjson.JSONEncodeError: another text cannot.
    """
    owners = list(dict.fromkeys([event.user_id for event in events]))
    first = {owner: 2 + _KEYS_OF_USER * number for number, owner in enumerate(owners)}  # positions are counted from 1
    keys = [old_stream]
    for owner in owners:
        keys += event_keys(prefix, owner)
    sessions = list[int]()
    for owner in sessions_among(owners):
        keys.append(keys_of(prefix, owner).merges)
        sessions += (first[owner], len(keys))
    impressions, values = dict[str, int](), list[Any]()
    timestamp, seconds = "", math.nan
    for event in events:
        owner, stored_in = event.user_id, event.stored_in
        list_key: bool | int | str = stored_in == "history" and (event.is_timed or _LAST)
        if stored_in == "impressions":
            list_key = impressions.get(owner, 0)
            if not list_key:
                keys.append(keys_of(prefix, owner).impressions)
                list_key = impressions[owner] = len(keys)
        if event.timestamp != seconds:  # events of a bulk that have none share that of their arrival
            seconds = event.timestamp
            timestamp = _number(seconds)
        values += (
            first[owner],
            list_key,
            event.event_id or "",
            owner,
            event.item_id,
            timestamp,
            event.type or "",
            event.request_id or "",
            _further_fields(event) if event.session_id or event.value is not None or event.arm else False,
        )
    return AppendCall(keys, [len(owners), len(keys), orjson.dumps([sessions, values])], owners)


def append_one_call(prefix: str, old_stream: str, event: Event) -> tuple[list[str], Arguments]:
    """Keys and arguments of the script that stores this event, see `APPEND_ONE`."""
    owner = event.user_id
    stream, history, event_ids, stream_ids = event_keys(prefix, owner)
    if event.stored_in == "impressions":
        history = keys_of(prefix, owner).impressions
    keys = [old_stream, stream, history, event_ids, stream_ids]
    if session_of(owner) is not None:
        keys.append(keys_of(prefix, owner).merges)
    arguments: Arguments = [
        _LAST if event.stored_in == "history" and not event.is_timed else event.stored_in,
        event.event_id or "",
        owner,
        event.item_id,
        _number(event.timestamp),
        event.type or "",
        event.request_id or "",
    ]
    if event.session_id or event.value is not None or event.arm:
        arguments += _further_fields(event)
    return keys, arguments


def _further_fields(event: Event) -> list[str]:
    """Names and values of the fields of a stream's entry that few events have."""
    value = None if event.value is None else _number(event.value)
    fields = list[str]()
    for name, given in (("session_id", event.session_id), ("value", value), ("arm", event.arm)):
        if given is not None:
            fields += (name, given)
    return fields


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
