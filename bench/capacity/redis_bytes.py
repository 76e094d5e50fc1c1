"""Measures what a user and an event take in Redis, as coefficients of `vlm2rec plan`.

    python -m bench.capacity.redis_bytes

Stores made users through the service's own adapter in an empty Redis with several lengths of history, with and without
event ids, and fits bytes = users × (of a user + events × of an event) to ``used_memory`` by least squares. Takes about
a minute. Prints JSON.
"""

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np

from bench.load.histories import used_bytes, user_id
from bench.measurements import commit
from demo.embedded_redis import EmbeddedRedis
from service.settings.groups import HistorySettings, RedisSettings
from service.stores.protocols import Event
from service.stores.redis_histories import RedisHistories

_USERS = 10_000
_LENGTHS = (1, 5, 10, 20, 50)
_SMALLEST_STREAM = 64  # an entry for each bucket
_CALL = 1_000


async def _filled(url: str, length: int, *, ids: bool, stream_cap: int) -> None:
    histories = HistorySettings(stream_cap=stream_cap)
    store = RedisHistories(RedisSettings(redis_url=url, redis_timeout_ms=10_000), histories)
    events: list[Event] = []
    for user in range(_USERS):
        for place in range(length):
            event_id = f"{user:08x}-{place:04x}-4000-8000-{place:012x}" if ids else None
            events.append(Event(user_id(user), f"item-{place:08d}", 1.7e9 + place, "view", event_id))
        if len(events) >= _CALL or user == _USERS - 1:
            await store.append(events)
            events = []
    await store.close()


def taken(length: int, *, ids: bool, stream_cap: int = _SMALLEST_STREAM) -> int:
    """Bytes that an empty Redis grows by when every made user gets so many events."""
    with EmbeddedRedis() as server:
        before = used_bytes(server.url)
        asyncio.run(_filled(server.url, length, ids=ids, stream_cap=stream_cap))
        return used_bytes(server.url) - before


def fitted(lengths: tuple[int, ...], bytes_taken: list[int], users: int) -> tuple[float, float]:
    """Bytes of a user and of each of its events, by least squares."""
    columns = np.stack([np.ones(len(lengths)), np.array(lengths, dtype=float)], axis=1)
    (of_user, of_event), *_ = np.linalg.lstsq(columns, np.array(bytes_taken) / users, rcond=None)
    return float(of_user), float(of_event)


def main() -> None:
    """Measure and print."""
    found: dict[str, Any] = {"users": _USERS, "commit": commit(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    for name, ids in (("plain", False), ("with_event_ids", True)):
        sizes = []
        for length in _LENGTHS:
            sizes.append(taken(length, ids=ids))
            print(f"{name}, {length} events: {sizes[-1] / _USERS:.0f} bytes a user", file=sys.stderr)
        of_user, of_event = fitted(_LENGTHS, sizes, _USERS)
        found[name] = {"of_user": round(of_user, 1), "of_event": round(of_event, 1), "bytes": sizes}
    without, whole = taken(10, ids=True), taken(10, ids=True, stream_cap=10 * _USERS)
    found["of_stream_entry"] = round((whole - without) / (10 * _USERS), 1)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
