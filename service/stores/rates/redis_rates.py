"""Stores the token buckets of all replicas in Redis.

Keys: ``<prefix>:rate:<digest of the caller>``, a hash with ``full``, the microseconds since 1970 by the clock of Redis
at which the bucket is full again, and ``at``, those of the last change. A key expires when its bucket is full.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

from service.errors import RatesUnavailable
from service.settings.groups import RedisSettings
from service.stores.deployment.opening import open_pipeline
from service.stores.redis_client import UNWATCHED, RedisWatch, translated
from service.stores.redis_pipeline import Script
from service.stores.redis_renewal import Renewal

# KEYS: the bucket. ARGV: microseconds to add. Returns the microseconds until the bucket is full. Where the clock is
# before the last change, as after a failover to another server, no time has passed: nobody waits for it to be back.
_ADD: Final = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local stored = redis.call('HMGET', KEYS[1], 'full', 'at')
local full, at = tonumber(stored[1]) or now, tonumber(stored[2]) or now
local ahead = math.max(full - math.max(now, at), 0) + ARGV[1]
redis.call('HSET', KEYS[1], 'full', string.format('%.0f', now + ahead), 'at', string.format('%.0f', now))
redis.call('EXPIRE', KEYS[1], math.ceil(ahead / 1000000) + 1)
return ahead
""")
_MICROSECONDS: Final = 1_000_000
_MOST_SECONDS: Final = 86_400.0  # a bucket that is full later than that is cut, so that no number overflows


class RedisRates:
    """Token buckets in Redis; the module lists the keys.

    Connects on first use. It has a connection and a breaker of its own, so what hangs here delays no history.

    Args:
        redis: URL, key prefix and timeout.
        watch: callbacks that observe the calls; the state of this breaker is not reported.
        renewal: shared with all other pipelines to the same Redis.

    Raises:
        SettingsError: redis-py does not understand the URL.
    """

    def __init__(self, redis: RedisSettings, *, watch: RedisWatch = UNWATCHED, renewal: Renewal | None = None) -> None:
        self._pipeline = open_pipeline(redis, watch=watch, renewal=renewal)
        self._prefix = redis.redis_prefix
        self._watch = watch

    async def add(self, charges: Sequence["tuple[bytes | str, float]"]) -> list[float]:
        """Take tokens of several callers; see `service.access.replica_buckets.RateStore`."""
        with translated("rates", RatesUnavailable, self._watch):
            replies = await asyncio.gather(
                *(
                    self._pipeline.run(_ADD, [self._key(caller)], [_microseconds(seconds)], int)
                    for caller, seconds in charges
                )
            )
        return [reply / _MICROSECONDS for reply in replies]

    async def close(self) -> None:
        """Close the connections."""
        await self._pipeline.close()

    def _key(self, caller: bytes | str) -> str:
        name = caller if isinstance(caller, bytes) else caller.encode()
        return f"{self._prefix}:rate:{hashlib.blake2b(name, digest_size=16).hexdigest()}"


def _microseconds(seconds: float) -> int:
    return round(min(seconds, _MOST_SECONDS) * _MICROSECONDS)
