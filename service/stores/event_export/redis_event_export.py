"""Reads the event streams for an export, records how far they are exported, and trims them.

Two more keys of every bucket, which exist only while there is an exporter (docs/redis.md):

================================  ====  ===============================================================================
``<prefix>:{bNNN}:export``        hash  ``directory`` (id of the export), ``key`` (of its erasures), ``exported`` (last
                                        exported id), ``lost`` (events cut before they were exported), ``erasing``
                                        (milliseconds since 1970 of the oldest erasure below); after a detachment only
                                        ``detached`` in bucket 0, until the next exporter
``<prefix>:{bNNN}:erasures``      hash  keyed hash of an erased user → the last stream id that the erasure covers
================================  ====  ===============================================================================
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from index.event_export.stream_ids import Entry, StreamId, bucket_name
from service.errors import EventsUnavailable
from service.settings.groups import RedisSettings
from service.stores.deployment.opening import open_pipeline
from service.stores.event_export.redis_export_scripts import ATTACH, DETACH, ERASURES_WRITTEN, MARK, TRIM, TRIM_READ
from service.stores.history_keys import BUCKETS, erasures_key, export_key, stream_key
from service.stores.redis_client import UNWATCHED, RedisWatch, texts, translated

_PAGE: Final = 1000
_OTHER: Final = b"other"
_LAST_SEQUENCE: Final = 2**64 - 1


class ReadPage(NamedTuple):
    """Entries of a bucket that were read, as they are removed in one call.

    Attributes:
        first: id of the first one.
        last: id of the last one.
        entries: how many.
        users: user → how many of them are the user's.
    """

    first: str
    last: str
    entries: int
    users: Mapping[bytes, int]


class Waiting(NamedTuple):
    """What of one bucket is not exported.

    Attributes:
        events: number of entries, which are events and merges of sessions; the cap of the stream is one of entries.
        oldest: id of the oldest of them; None if there is none.
        erasing: milliseconds since 1970 of the oldest erasure that is not exported; None if there is none.
        lost: events that were cut before they were exported, since the export began.
        exported: the last exported id; None if Redis knows of none.
    """

    events: int
    oldest: str | None
    erasing: int | None
    lost: int
    exported: str | None = None


class OtherExport(Exception):
    """The events are exported to another directory."""


class ExportMoved(Exception):
    """Another exporter recorded an export in between."""


class RedisEventExport:
    """The streams of all buckets, as an exporter sees them.

    Every method raises `EventsUnavailable` when Redis does not answer in its time.

    Args:
        redis: URL, key prefix, and the replicas that must confirm what is written.
        timeout_s: seconds that a reply may take.
        watch: callbacks that observe the calls.
    """

    def __init__(self, redis: RedisSettings, *, timeout_s: float = 10.0, watch: RedisWatch = UNWATCHED) -> None:
        self._pipeline = open_pipeline(redis, timeout_s=timeout_s, watch=watch, wait_replicas=redis.redis_wait_replicas)
        self._prefix = redis.redis_prefix
        self._watch = watch

    async def attach(self, directory: str, key: str, positions: Sequence[str]) -> list[str]:
        """Record where events are exported to.

        Args:
            directory: id of the export.
            key: of its erasures.
            positions: for each bucket the last id that the directory holds; ``0-0`` for none.

        Returns:
            For each bucket the last exported id that Redis knows of.

        Raises:
            OtherExport: the events are exported to another directory.
        """
        with self._translated("attach"):
            calls = [
                self._pipeline.run(ATTACH, self._keys(bucket)[:2], [directory, key, position], bytes)
                for bucket, position in enumerate(positions)
            ]
            known = await asyncio.gather(*calls)
        if _OTHER in known:
            raise OtherExport
        return texts(known)

    async def detach(self) -> int:
        """Forget the export: the streams are cut at their cap again, and nothing counts as lost.

        Returns:
            Number of erasures that no export has taken.
        """
        with self._translated("detach"):
            left = await asyncio.gather(*[self._pipeline.call("HLEN", self._keys(b)[2], kind=int) for b in _ALL])
            await self._pipeline.run(DETACH, self._keys(0)[:1], [], int)
            await asyncio.gather(
                *[self._pipeline.call("UNLINK", *self._keys(b)[:3:2], kind=int) for b in _ALL if b],
                self._pipeline.call("UNLINK", self._keys(0)[2], kind=int),
                self._pipeline.call("HDEL", self._keys(0)[0], *_FIELDS, kind=int),
            )
        return sum(left)

    async def is_detached(self) -> bool:
        """Whether the export was detached, and none has begun since; False also where Redis has lost its data."""
        with self._translated("detach"):
            (found,) = await self._pipeline.call("HMGET", self._keys(0)[0], _DETACHED, kind=list)
        return found is not None

    async def entries(self, bucket: int, after: str, most: int) -> list[Entry]:
        """Entries of a bucket after an id, oldest first, as Redis sends them.

        Args:
            bucket: its number.
            after: an id.
            most: how many at most.
        """
        found: list[Entry] = []
        with self._translated("entries"):
            while len(found) < most:
                page = min(_PAGE, most - len(found))
                command = ("XRANGE", stream_key(self._prefix, bucket), f"({after}", "+", "COUNT", page)
                entries = await self._pipeline.call(*command, kind=list)
                found += map(tuple, entries)
                if len(entries) < page:
                    break
                after = found[-1][0].decode()
        return found

    async def mark(self, bucket: int, directory: str, before: str, now: str) -> None:
        """Record how far a bucket is exported.

        Args:
            bucket: its number.
            directory: id of the export.
            before: the last exported id so far.
            now: the last exported id from now on.

        Raises:
            ExportMoved: another exporter recorded something in between.
            EventsUnavailable: Redis has lost what was recorded, as a failover can.
        """
        with self._translated("mark"):
            found = texts(await self._pipeline.run(MARK, self._keys(bucket)[:1], [directory, before, now], list))
        if found and (found[0] not in {"", directory} or is_before(before, found[1])):
            raise ExportMoved
        if found:
            raise EventsUnavailable(lost_record(bucket))

    async def trim(self, buckets: Iterable[int]) -> None:
        """Remove the exported entries of buckets, a page a call, so that other clients wait for one page at most."""
        with self._translated("trim"):
            for bucket in buckets:
                await self._trim(bucket)

    async def _trim(self, bucket: int) -> None:
        while await self._pipeline.run(TRIM, self._keys(bucket)[:2], [_PAGE], int) == _PAGE:
            pass

    async def trim_read(self, bucket: int, pages: Sequence[ReadPage]) -> None:
        """Remove the entries of a bucket that were read and exported; the last exported id is that of the last page.

        Args:
            bucket: its number.
            pages: all that was read since the last call, from :func:`pages_of`.
        """
        with self._translated("trim"):
            for page in pages:
                users = [part for user, count in page.users.items() for part in (user, count)]
                arguments = [pages[-1].last, page.first, _next_id(page.last), page.entries, *users]
                if await self._pipeline.run(TRIM_READ, self._keys(bucket)[:2], arguments, int) < 0:
                    await self._trim(bucket)
                    return

    async def erasures(self) -> dict[int, dict[str, str]]:
        """Erasures that no export has taken, by bucket: hash → the last id that it covers."""
        with self._translated("erasures"):
            found = await asyncio.gather(*[self._erasures(bucket) for bucket in _ALL])
        return {bucket: erased for bucket, erased in enumerate(found) if erased}

    async def _erasures(self, bucket: int) -> dict[str, str]:
        found: dict[str, str] = {}
        cursor = b"0"
        while True:
            command = ("HSCAN", self._keys(bucket)[2], cursor, "COUNT", _PAGE)
            cursor, stored = await self._pipeline.call(*command, kind=list)
            fields = texts(stored)
            found |= dict(zip(fields[::2], fields[1::2], strict=True))
            if cursor == b"0":
                return found

    async def erasures_written(self, bucket: int, written: Mapping[str, str]) -> None:
        """Remove erasures that the directory holds now, unless the user was erased again meanwhile."""
        pairs = list(written.items())
        with self._translated("erasures"):
            for start in range(0, len(pairs), _PAGE):
                arguments = [part for pair in pairs[start : start + _PAGE] for part in pair]
                await self._pipeline.run(ERASURES_WRITTEN, self._keys(bucket)[::2], arguments, int)

    async def waiting(self) -> list[Waiting] | None:
        """What is not exported, for each bucket; None if there is no exporter."""
        with self._translated("waiting"):
            fields = ("exported", "erasing", "lost")
            known = await asyncio.gather(
                *[self._pipeline.call("HMGET", self._keys(b)[0], *fields, kind=list) for b in _ALL]
            )
            if not any(exported for exported, _, _ in known):
                return None
            streams = [stream_key(self._prefix, bucket) for bucket in _ALL]
            lengths = await asyncio.gather(*[self._pipeline.call("XLEN", stream, kind=int) for stream in streams])
            oldest = await asyncio.gather(
                *[
                    self._pipeline.call("XRANGE", stream, f"({_text(exported, '0-0')}", "+", "COUNT", 1, kind=list)
                    for stream, (exported, _, _) in zip(streams, known, strict=True)
                ]
            )
        return [
            Waiting(
                length if first else 0,
                first[0][0].decode() if first else None,
                _integer(erasing),
                _integer(lost) or 0,
                None if exported is None else exported.decode(),
            )
            for length, first, (exported, erasing, lost) in zip(lengths, oldest, known, strict=True)
        ]

    async def close(self) -> None:
        """Close the connection."""
        await self._pipeline.close()

    def _keys(self, bucket: int) -> tuple[str, str, str]:
        return (
            export_key(self._prefix, bucket),
            stream_key(self._prefix, bucket),
            erasures_key(self._prefix, bucket),
        )

    def _translated(self, operation: str) -> AbstractContextManager[None]:
        return translated(operation, EventsUnavailable, self._watch)


_ALL: Final = range(BUCKETS)
_DETACHED: Final = "detached"
_FIELDS: Final = ("directory", "key", "exported", "lost", "erasing")


def lost_record(bucket: int) -> str:
    """The message of a bucket of which Redis knows less than it has confirmed to the exporter."""
    return (
        f"Redis has lost how far {bucket_name(bucket)} is exported, as a failover can; start the export again, with "
        "--follow it goes on by itself"
    )


def is_before(one: str, other: str) -> bool:
    """Whether an id of a stream comes before another one; an empty text comes before all."""
    return StreamId.parse(one or "0-0") < StreamId.parse(other or "0-0")


def pages_of(entries: Sequence[Entry]) -> list[ReadPage]:
    """What :meth:`RedisEventExport.trim_read` needs to know of entries, as they were read.

    Args:
        entries: of one bucket, all that were read, in their order.
    """
    pages = []
    for start in range(0, len(entries), _PAGE):
        page = entries[start : start + _PAGE]
        users = Counter([fields[1] for _, fields in page])  # the user is the first field of every entry
        pages.append(ReadPage(page[0][0].decode(), page[-1][0].decode(), len(page), users))
    return pages


def _next_id(last: str) -> str:
    """The lowest id after another one."""
    milliseconds, sequence = StreamId.parse(last)
    return str(StreamId(milliseconds, sequence + 1) if sequence < _LAST_SEQUENCE else StreamId(milliseconds + 1, 0))


def _integer(stored: bytes | None) -> int | None:
    """A stored number; None if there is none, or another program wrote something else."""
    return int(stored) if stored is not None and stored.isdigit() else None


def _text(stored: bytes | None, otherwise: str) -> str:
    return otherwise if stored is None else stored.decode()
