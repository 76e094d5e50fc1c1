"""Stores the operator state, the pin, the hidden items and the experiment of all replicas, in Redis.

Keys, all under one prefix (default ``vlm2rec``), on one node of a cluster, none of them ever expiring:

==================================  ====  =====================================================================
``<prefix>:{directives}:state``     hash  ``epoch``, ``number`` of changes, ``pin``, ``experiment``; the ``floor``:
                                          changes up to that number may be forgotten; ``erasure``: the last erasure of
                                          a user, at random
``<prefix>:{directives}:hidden``    zset  hidden item ids by the number of the change that hid them
``<prefix>:{directives}:shown``     zset  item ids shown again, in the same form; the newest 10,000
``<prefix>:{directives}:audit``     list  what administrators changed, as JSON, newest first; the newest 1000
==================================  ====  =====================================================================
"""

import uuid
from collections.abc import Sequence
from typing import Final

from service.errors import Conflict, OperatorStateUnavailable, RedisUnavailable
from service.settings.groups import RedisSettings
from service.stores.deployment.opening import open_pipeline
from service.stores.protocols import OTHER_EXPERIMENT, Changes, Edition
from service.stores.redis_client import UNWATCHED, RedisWatch, texts, translated
from service.stores.redis_pipeline import ALSO_WHEN_FULL, Script
from service.stores.redis_renewal import Renewal

_PAGE: Final = 1000
_RESTORING_TTL_S: Final = 60
_MOST_LOGGED: Final = 1000
_OTHER_EXPERIMENT: Final = -1
_LOST: Final = -1

# `behind`: the store has lost changes that the caller knows, see `Edition.is_behind`.
_BEHIND: Final = """
local state = redis.call('HMGET', KEYS[1], 'epoch', 'number')
local epoch, number = state[1] or '', tonumber(state[2] or '0')
local behind = ARGV[1] ~= '' and (epoch == '' or (epoch == ARGV[1] and number < tonumber(ARGV[2])))
"""

_CHANGE: Final = Script(
    ALSO_WHEN_FULL
    + _BEHIND
    + """
if behind then
    return 0
end
if epoch == '' then
    redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'number', 0)
end
local verb, value = ARGV[4], ARGV[5]
if verb == 'hide' then
    if not redis.call('ZSCORE', KEYS[2], value) then
        redis.call('ZADD', KEYS[2], redis.call('HINCRBY', KEYS[1], 'number', 1), value)
        redis.call('ZREM', KEYS[3], value)
    end
elseif verb == 'show' then
    if redis.call('ZREM', KEYS[2], value) == 1 then
        redis.call('ZADD', KEYS[3], redis.call('HINCRBY', KEYS[1], 'number', 1), value)
        if redis.call('ZCARD', KEYS[3]) > tonumber(ARGV[6]) then
            local oldest = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
            redis.call('ZREM', KEYS[3], oldest[1])
            redis.call('HSET', KEYS[1], 'floor', oldest[2])
        end
    end
elseif value ~= (redis.call('HGET', KEYS[1], verb) or '') then
    if verb == 'experiment' and ARGV[7] ~= (redis.call('HGET', KEYS[1], verb) or '') then
        return -1
    end
    redis.call('HSET', KEYS[1], verb, value)
    redis.call('HINCRBY', KEYS[1], 'number', 1)
end
return 1
"""
)

# KEYS[4] holds the hidden items, written before in small steps; it does not exist if there are none. Returns -1 and
# changes nothing where some of them are gone, as Redis may evict that key or its clock leap over its time to live.
_RESTORE: Final = Script(
    _BEHIND
    + """
if not behind then
    redis.call('UNLINK', KEYS[4])
    return 0
end
if redis.call('ZCARD', KEYS[4]) ~= tonumber(ARGV[5]) then
    return -1
end
redis.call('UNLINK', KEYS[2], KEYS[3])
if redis.call('EXISTS', KEYS[4]) == 1 then
    redis.call('RENAME', KEYS[4], KEYS[2])
    redis.call('PERSIST', KEYS[2])
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'number', ARGV[2], 'floor', ARGV[2], 'pin', ARGV[3])
redis.call('HSET', KEYS[1], 'experiment', ARGV[4])
return 1
"""
)


_LOG: Final = Script(
    ALSO_WHEN_FULL
    + """
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, ARGV[2] - 1)
return 1
"""
)

_ANNOUNCE: Final = Script(
    ALSO_WHEN_FULL
    + """
return redis.call('HSET', KEYS[1], 'erasure', ARGV[1])
"""
)


class RedisOperatorState:
    """Pin and hidden items in Redis; the module lists the keys.

    Args:
        redis: URL, key prefix and timeout.
        timeout_s: shortest timeout in seconds; it replaces that of ``redis`` where it is longer.
        shown_cap: newest items shown again that are remembered as changes.
        watch: callbacks that observe the calls; the state of this breaker is not reported.
        renewal: shared with all other pipelines to the same Redis.

    Raises:
        SettingsError: redis-py does not understand the URL.
    """

    def __init__(
        self,
        redis: RedisSettings,
        *,
        timeout_s: float = 0.0,
        shown_cap: int = 10_000,
        watch: RedisWatch = UNWATCHED,
        renewal: Renewal | None = None,
    ) -> None:
        self._pipeline = open_pipeline(redis, timeout_s=timeout_s, watch=watch, renewal=renewal)
        self._base = f"{redis.redis_prefix}:{{directives}}"
        self._keys = [f"{self._base}:{name}" for name in ("state", "hidden", "shown")]
        self._shown_cap = shown_cap
        self._watch = watch

    async def edition(self) -> Edition:
        """The edition now; see `OperatorStateStore.edition`."""
        with translated("directives", OperatorStateUnavailable, self._watch):
            epoch, number, erasure = await self._read("epoch", "number", "erasure")
        return Edition(epoch, _count(number), erasure)

    async def changes(self, since: Edition) -> Changes:
        """The changes; see `OperatorStateStore.changes`. Read in pages, so that a large set delays no other call."""
        with translated("directives", OperatorStateUnavailable, self._watch):
            # The edition is read first: a change while the pages are read has a later edition and is read again.
            epoch, number, floor, pin, experiment = await self._read("epoch", "number", "floor", "pin", "experiment")
            whole = since.epoch != epoch or since.number < _count(floor)
            after = 0 if whole else since.number
            hidden = await self._after(self._keys[1], after)
            shown = () if whole else await self._after(self._keys[2], after)
        return Changes(Edition(epoch, _count(number)), pin or None, whole, hidden, shown, experiment or None)

    async def pin(self, bundle_id: str | None, known: Edition) -> bool:
        """Pin a bundle; see `OperatorStateStore.pin`."""
        return await self._write("pin", bundle_id or "", known)

    async def set_experiment(self, definition: str | None, known: Edition, *, instead_of: str | None) -> bool:
        """Run an experiment; see `OperatorStateStore.set_experiment`."""
        return await self._write("experiment", definition or "", known, instead_of or "")

    async def hide(self, item_id: str, known: Edition) -> bool:
        """Hide an item; see `OperatorStateStore.hide`."""
        return await self._write("hide", item_id, known)

    async def show(self, item_id: str, known: Edition) -> bool:
        """Show an item again; see `OperatorStateStore.show`."""
        return await self._write("show", item_id, known)

    async def announce_erasure(self) -> None:
        """Announce an erasure; see `OperatorStateStore.announce_erasure`."""
        with translated("erasure", OperatorStateUnavailable, self._watch):
            await self._pipeline.run(_ANNOUNCE, self._keys[:1], [uuid.uuid4().hex], int)

    async def log_change(self, entry: str) -> None:
        """Add to the audit log; see `OperatorStateStore.log_change`."""
        with translated("audit", OperatorStateUnavailable, self._watch):
            await self._pipeline.run(_LOG, [f"{self._base}:audit"], [entry, _MOST_LOGGED], int)

    async def logged_changes(self) -> list[str]:
        """The audit log; see `OperatorStateStore.logged_changes`."""
        with translated("audit", OperatorStateUnavailable, self._watch):
            return texts(await self._pipeline.call("LRANGE", f"{self._base}:audit", 0, -1, kind=list))

    async def restore(
        self, edition: Edition, pin: str | None, hidden: Sequence[str], experiment: str | None = None
    ) -> None:
        """Restore a state; see `OperatorStateStore.restore`."""
        new_key = f"{self._base}:restoring:{uuid.uuid4().hex}"
        with translated("restore", OperatorStateUnavailable, self._watch):
            for start in range(0, len(hidden), _PAGE):
                page = hidden[start : start + _PAGE]
                scored = [part for number, item in enumerate(page, start + 1) for part in (number, item)]
                await self._pipeline.call("ZADD", new_key, *scored, kind=int)
                await self._pipeline.call("EXPIRE", new_key, _RESTORING_TTL_S, kind=int)
            arguments: list[str | int] = [edition.epoch, edition.number, pin or "", experiment or "", len(set(hidden))]
            if await self._pipeline.run(_RESTORE, [*self._keys, new_key], arguments, int) == _LOST:
                raise RedisUnavailable("it has lost hidden items that were just written")

    async def close(self) -> None:
        """Close the connections."""
        await self._pipeline.close()

    async def _read(self, *names: str) -> list[str]:
        stored = await self._pipeline.call("HMGET", self._keys[0], *names, kind=list)
        return texts([value or b"" for value in stored])

    async def _after(self, key: str, number: int) -> tuple[str, ...]:
        """The members of a zset with a score above a number, by score."""
        found: list[str] = []
        above = str(number)
        while True:
            page = ("WITHSCORES", "LIMIT", 0, _PAGE)
            answered = texts(await self._pipeline.call("ZRANGEBYSCORE", key, f"({above}", "+inf", *page, kind=list))
            found += answered[::2]  # members and scores alternate
            if len(answered) < 2 * _PAGE:
                return tuple(found)
            above = answered[-1]

    async def _write(self, verb: str, value: str, known: Edition, instead_of: str = "") -> bool:
        arguments: list[str | int] = [known.epoch, known.number, uuid.uuid4().hex, verb, value]
        with translated(verb, OperatorStateUnavailable, self._watch):
            written = await self._pipeline.run(_CHANGE, self._keys, [*arguments, self._shown_cap, instead_of], int)
        if written == _OTHER_EXPERIMENT:
            raise Conflict(OTHER_EXPERIMENT)
        return bool(written)


def _count(stored: str) -> int:
    """The stored number; 0 if there is none, or if another program wrote something else."""
    return int(stored) if stored.isdecimal() else 0
