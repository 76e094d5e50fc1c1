"""Reads all keys of a prefix for a backup, and writes them into an empty Redis.

Keys are copied as Redis itself serialises them (`DUMP`, `RESTORE`), so lists, streams and their last ids stay exact,
and Redis checks each of them by its checksum. Two kinds of keys are not copied: ``stream_ids`` are made from streams
again, so that both fit together, and operator state that is being restored expires within a minute.

In a Redis Cluster each node that owns slots is scanned, and all other calls go to the node of their key. A scan is good
only where the slots stayed where they were: it counts keys of a node, and would miss those that move behind it.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from service.errors import BackupInterrupted, BackupRefused
from service.settings.groups import RedisSettings
from service.stores.deployment.opening import Pipeline, open_pipeline
from service.stores.deployment.slot_map import slot_of
from service.stores.history_keys import BUCKETS, bucket_of, keys_of, stream_key
from service.stores.protocols import session_owner
from service.stores.redis_client import UNWATCHED, texts, translated
from service.stores.redis_pipeline import Script

_PAGE: Final = 1000
_TOGETHER: Final = 64  # groups of keys dumped at once, each in a script of its own
_GLOB: Final = re.compile(r"([*?\[\]\\])")
_KINDS: Final = ("history", "impressions", "event_ids", "merges", "merging")
_OF_OWNER: Final = re.compile(rf"(\{{b\d{{3}}\}}):({'|'.join(_KINDS)}):(.*)", re.DOTALL)
_OWN: Final = re.compile(r"\{[^}]*\}:[^{].*|events|rate:[0-9a-f]+", re.DOTALL)
_STREAM_IDS: Final = re.compile(r"\{b\d{3}\}:stream_ids:.*", re.DOTALL)
_BEFORE_SLOTS: Final = 5  # fields between flags and slots in a line of CLUSTER NODES: master, ping, pong, epoch, link
_MOVING: Final = "["  # of a slot that is on its way to another node, or from there
_MARKER: Final = "{restore}:backup"
_SESSION: Final = "\x1f"
_OPERATOR_STATE: Final = tuple("{directives}:" + name for name in ("state", "hidden", "shown", "audit"))
_TEMPORARY: Final = ("{directives}:restoring:", "{restore}:")

# KEYS: any of one hash tag. Returns the time in milliseconds, then of each key its serialised value and its time to
# live in milliseconds, -1 for none; two nils for a key that does not exist.
_DUMP: Final = Script("""
local time = redis.call('TIME')
local found = {tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)}
for _, key in ipairs(KEYS) do
    local value = redis.call('DUMP', key)
    found[#found + 1] = value
    found[#found + 1] = value and redis.call('PTTL', key)
end
return found
""")

# KEYS: stream. ARGV: first id, most entries. Adds the ids of entries to the lists of their users; returns the last id,
# '' at the end.
_LIST_IDS: Final = Script("""
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
for _, entry in ipairs(entries) do
    redis.call('RPUSH', KEYS[1] .. '_ids:' .. entry[2][2], entry[1])
end
return #entries > 0 and entries[#entries][1] or ''
""")


_ONE_NODE: Final = (
    "redis_url names one node of a Redis Cluster, which has a part of the keys; name the cluster: redis+cluster://"
)
_MOVED: Final = (
    "slots of the cluster were moved, or a replica took over, while its keys were read; start the same command again"
)


class StoredKey(NamedTuple):
    """A key as it is in Redis.

    Attributes:
        name: without the prefix.
        expires_ms: milliseconds since 1970; -1: it never expires.
        value: serialised by Redis; empty: the key does not exist any more.
    """

    name: str
    expires_ms: int
    value: bytes


KeyGroup = tuple[str, ...]
"""Names without the prefix, of one hash tag, of keys that are copied as they are at one moment."""


class RedisBackup:
    """All keys of one prefix.

    Every method raises `BackupInterrupted` when Redis does not answer in its time, or refuses a command.

    Args:
        redis: URL and key prefix.
        timeout_s: seconds that a reply may take; the stream of a bucket is one reply.

    Attributes:
        is_cluster: whether it is a Redis Cluster.
    """

    def __init__(self, redis: RedisSettings, *, timeout_s: float = 60.0) -> None:
        self._pipeline = open_pipeline(redis, timeout_s=timeout_s)
        self._prefix = redis.redis_prefix
        self.is_cluster = redis.kind == "cluster"

    async def server(self) -> str:
        """Version of the server; the highest one of the nodes of a cluster.

        Raises:
            BackupRefused: the URL names one node of a Redis Cluster, which has only some of the buckets.
        """
        versions = []
        with _translated("hello"):
            for node in await self._pipeline.nodes():
                about = await node.call("HELLO", kind=list)  # names and values alternate
                known = dict(zip(about[::2], about[1::2], strict=False))
                if known.get(b"mode") == b"cluster" and not self.is_cluster:
                    raise BackupRefused(_ONE_NODE)
                versions.append(str(known.get(b"version", b"unknown").decode()))
        return max(versions, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])

    async def now_ms(self) -> int:
        """The clock of Redis in milliseconds since 1970; the slowest one of the nodes of a cluster."""
        with _translated("time"):
            times = [await node.call("TIME", kind=list) for node in await self._pipeline.nodes()]
        return min(int(seconds) * 1000 + int(microseconds) // 1000 for seconds, microseconds in times)

    async def names(self, pattern: str = "*") -> AsyncIterator[list[str]]:
        """Pages of names without the prefix that match; a name may come twice, or be gone.

        A key that exists from the beginning to the end is among them. Names that are not UTF-8 are not ours, nor are
        those of another prefix that begins with this one and a colon.

        Raises:
            BackupInterrupted: slots of a cluster were moved meanwhile.
        """
        before = await self._slots()
        if any(slot.startswith(_MOVING) for slots in before.values() for slot in slots):
            raise BackupInterrupted(_MOVED)
        with _translated("scan"):
            nodes = await self._pipeline.nodes()
        for node in nodes:
            async for found in self._scan(node, pattern):
                yield found
        if await self._slots() != before:
            raise BackupInterrupted(_MOVED)

    async def _scan(self, node: Pipeline, pattern: str) -> AsyncIterator[list[str]]:
        cursor, escaped = b"0", _GLOB.sub(r"\\\1", self._prefix)
        while True:
            with _translated("scan"):
                command = ("SCAN", cursor, "MATCH", f"{escaped}:{pattern}", "COUNT", _PAGE)
                cursor, found = await node.call(*command, kind=list)
            names = (name.removeprefix(f"{self._prefix}:") for name in _utf8(found))
            yield [name for name in names if is_own(name)]
            if cursor == b"0":
                return

    async def _slots(self) -> Mapping[str, Sequence[str]]:
        """The slots of each node of a cluster by its id, as it says itself; nothing for one Redis."""
        if not self.is_cluster:
            return {}
        found: dict[str, Sequence[str]] = {}
        with _translated("nodes"):
            for node in await self._pipeline.nodes():
                for line in texts([await node.call("CLUSTER", "NODES", kind=bytes)])[0].splitlines():
                    name, _, flags, *more = line.split()
                    if "myself" in flags.split(","):
                        found[name] = more[_BEFORE_SLOTS:]
        return found

    async def dump(self, groups: Sequence[KeyGroup], *, gone: bool = False) -> list[StoredKey]:
        """The keys of groups.

        Args:
            groups: of keys.
            gone: include the keys that do not exist, without a value.
        """
        found: list[StoredKey] = []
        for at in range(0, len(groups), _TOGETHER):
            part = groups[at : at + _TOGETHER]
            with _translated("dump"):
                replies = await asyncio.gather(
                    *[self._pipeline.run(_DUMP, [*map(self._key, names)], [], list) for names in part]
                )
            for names, reply in zip(part, replies, strict=True):
                for name, value, left in zip(names, reply[1::2], reply[2::2], strict=True):
                    if value is not None:
                        found.append(StoredKey(name, reply[0] + left if left >= 0 else -1, value))
                    elif gone:
                        found.append(StoredKey(name, -1, b""))
        return found

    async def owners_since(self, bucket: int, since_ms: int) -> set[str]:
        """Users and sessions of a bucket with an event that arrived since then."""
        owners: set[str] = set()
        start = str(since_ms)
        while True:
            with _translated("stream"):
                command = ("XRANGE", stream_key(self._prefix, bucket), start, "+", "COUNT", _PAGE)
                entries = await self._pipeline.call(*command, kind=list)
            owners |= {texts(fields[1:2])[0] for _, fields in entries}
            if len(entries) < _PAGE:
                return owners
            start = f"({entries[-1][0].decode()}"

    async def merged_since(self, names: Iterable[str], since_ms: int) -> set[tuple[str, str]]:
        """Users with the owners of the sessions that were merged into them since then.

        Args:
            names: of records of merges, without the prefix.
            since_ms: milliseconds since 1970.
        """
        users = [match[3] for name in names if (match := _OF_OWNER.fullmatch(name)) and match[3][:1] != _SESSION]
        found: set[tuple[str, str]] = set()
        for at in range(0, len(users), _TOGETHER):
            part = users[at : at + _TOGETHER]
            with _translated("merges"):
                keys = [keys_of(self._prefix, user).merges for user in part]
                calls = [self._pipeline.call("ZRANGEBYSCORE", key, since_ms // 1000, "+inf", kind=list) for key in keys]
                for user, sessions in zip(part, await asyncio.gather(*calls), strict=True):
                    found |= {(user, session_owner(session)) for session in texts(sessions)}
        return found

    async def last_erasure(self) -> str:
        """Random id of the last erasure of a user; empty if there was none."""
        with _translated("state"):
            (found,) = await self._pipeline.call("HMGET", self._key("{directives}:state"), "erasure", kind=list)
        return str((found or b"").decode())

    async def restore(self, keys: Sequence[StoredKey]) -> None:
        """Write keys in order; one that exists is replaced, one that has expired is not written.

        Nor is a key of another prefix, as backups of earlier versions have them: it may be in use here.
        """
        with _translated("restore"):
            await asyncio.gather(*[self._restore(key) for key in keys if is_own(key.name)])

    async def _restore(self, key: StoredKey) -> None:
        if not key.value:
            await self._pipeline.call("UNLINK", self._key(key.name), kind=int)
            return
        command = ("RESTORE", self._key(key.name), max(key.expires_ms, 0), key.value, "REPLACE", "ABSTTL")
        await self._pipeline.call(*command, kind=bytes)

    async def list_stream_ids(self, bucket: int) -> None:
        """Make the lists of ids of a bucket from its stream; they must not exist."""
        start = "-"
        while start:
            with _translated("stream ids"):
                last = await self._pipeline.run(_LIST_IDS, [stream_key(self._prefix, bucket)], [start, _PAGE], bytes)
            start = f"({last.decode()}" if last else ""

    async def interrupted_restore(self) -> str | None:
        """Hash of the backup whose restore has begun and not ended here; None if there is none."""
        with _translated("restore"):
            (found,) = await self._pipeline.call("HMGET", self._key(_MARKER), "content", kind=list)
        return None if found is None else str(found.decode())

    async def begin_restore(self, content: str) -> None:
        """Record that the restore of a backup has begun."""
        with _translated("restore"):
            await self._pipeline.call("HSET", self._key(_MARKER), "content", content, kind=int)

    async def end_restore(self) -> None:
        """Record that it has ended."""
        with _translated("unlink"):
            await self._pipeline.call("UNLINK", self._key(_MARKER), kind=int)

    async def delete_all(self, names: Iterable[str]) -> None:
        """Delete keys but the record of :meth:`begin_restore`."""
        by_slot: dict[int, list[str]] = defaultdict(list)
        for key in (self._key(name) for name in names if name != _MARKER):
            by_slot[slot_of(key)].append(key)
        commands = [("UNLINK", *keys) for keys in by_slot.values()]
        for at in range(0, len(commands), _TOGETHER):
            with _translated("unlink"):
                part = commands[at : at + _TOGETHER]
                await asyncio.gather(*[self._pipeline.call(*command, kind=int) for command in part])

    async def close(self) -> None:
        """Close the connection."""
        await self._pipeline.close()

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"


def is_own(name: str) -> bool:
    """Whether a name without the prefix is of a key of this service; else it is of another prefix that begins alike.

    As with ``shop`` and ``shop:eu``, whose keys begin with ``shop:`` too.
    """
    return _OWN.fullmatch(name) is not None


def group_of(name: str) -> KeyGroup | None:
    """The keys that are copied where a scan meets a name; None: it is not copied, or with :func:`shared_groups`.

    Those of a user are copied with each of them, although some are copied twice then: a key that appeared after the
    scan had passed its place is not met itself, and what shows that it appeared, an event, may be trimmed already.
    """
    if name in _SHARED or name.startswith(_TEMPORARY) or _STREAM_IDS.fullmatch(name):
        return None
    match = _OF_OWNER.fullmatch(name)
    if match is None:
        return (name,)
    return tuple(f"{match[1]}:{kind}:{match[3]}" for kind in _KINDS)


def group_of_owner(owner: str) -> KeyGroup:
    """The keys of a user or session."""
    return tuple(f"{{b{bucket_of(owner):03d}}}:{kind}:{owner}" for kind in _KINDS)


def shared_groups() -> list[KeyGroup]:
    """The keys of each bucket that belong to no single user, and those of the operator state."""
    kinds = ("stream", "export", "erasures", "answers", "answers_order", "answers_size", "experiment_users")
    buckets = [tuple(f"{{b{bucket:03d}}}:{kind}" for kind in kinds) for bucket in range(BUCKETS)]
    return [*buckets, _OPERATOR_STATE]


_SHARED: Final = frozenset(name for group in shared_groups() for name in group)


def _utf8(found: Sequence[bytes]) -> list[str]:
    names = []
    for name in found:
        try:
            names.append(name.decode())
        except UnicodeDecodeError:
            continue
    return names


def _translated(operation: str) -> AbstractContextManager[None]:
    return translated(operation, BackupInterrupted, UNWATCHED)
