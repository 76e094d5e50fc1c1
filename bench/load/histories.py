"""Stores histories of made users in a real Redis, in the format of the service."""

import asyncio
from collections.abc import Sequence

import redis

from service.settings.groups import HistorySettings, RedisSettings
from service.stores.protocols import Event
from service.stores.redis_histories import RedisHistories

_EVENTS_A_CALL = 1000


def user_id(number: int) -> str:
    """The id of a user."""
    return f"user-{number:06d}"


def fill(url: str, histories: Sequence[Sequence[str]], first: int = 0) -> None:
    """Store histories, item ids oldest first, of the users from number ``first`` on."""
    asyncio.run(_fill(url, histories, first))


def bytes_per_user(url: str, numbers: Sequence[int]) -> float:
    """Mean bytes of all keys of a user, by Redis' ``MEMORY USAGE``."""
    with redis.Redis.from_url(url) as client:
        keys = [key for number in numbers for key in client.scan_iter(f"*:{user_id(number)}", count=10_000)]
        return sum(int(client.memory_usage(key, samples=0) or 0) for key in keys) / len(numbers)


def used_bytes(url: str) -> int:
    """Total bytes that Redis has allocated."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("memory")["used_memory"])


async def _fill(url: str, histories: Sequence[Sequence[str]], first: int) -> None:
    sessions = RedisHistories(RedisSettings(redis_url=url, redis_timeout_ms=10_000), HistorySettings())
    events: list[Event] = []
    for number, items in enumerate(histories, first):
        events += [Event(user_id(number), item, 1.7e9 + place, "view") for place, item in enumerate(items)]
        if len(events) >= _EVENTS_A_CALL:
            await sessions.append(events)
            events = []
    if events:
        await sessions.append(events)
    await sessions.close()
