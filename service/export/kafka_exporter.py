"""Exports the event streams to a Kafka topic, each event at least once, and trims them by what Kafka acknowledged.

Redis alone says what was delivered, so a bucket's position rises after the acknowledgement of its records. An exporter
that was killed in between delivers the records of at most one file's size a bucket again, with the same stream ids.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import orjson

from index.event_export.erasures import NO_KEY
from index.event_export.merges import is_merge
from index.event_export.rows import ARRIVED, EXTRA, STREAM_ID, USER_ID, table_of
from index.event_export.stream_ids import BEFORE_ALL, Entry, StreamId, bucket_name
from service.errors import ExportRefused
from service.export.exporter import DETACH_HINT, Exported, due_buckets, known_waiting
from service.export.kafka_topic import Record, TopicWriter
from service.stores.event_export.redis_event_export import ExportMoved, OtherExport, RedisEventExport, pages_of
from service.stores.event_export.waiting_ages import WaitingAges
from service.stores.history_keys import BUCKETS

BUCKET_HEADER: Final = "bucket"
STREAM_ID_HEADER: Final = "stream_id"
ERASED_UNTIL_HEADER: Final = "erased_until"


class KafkaExporter:
    """Exports to a topic.

    Args:
        events: the streams.
        writer: of the topic.
        records_per_write: most events that wait for their acknowledgement together.
    """

    def __init__(self, events: RedisEventExport, writer: TopicWriter, *, records_per_write: int) -> None:
        self._events = events
        self._writer = writer
        self._records_per_write = records_per_write
        self._positions: list[str] = []
        self._ages = WaitingAges()
        self._id = f"kafka:{writer.target.topic}"  # without the brokers, whose addresses may change

    async def attach(self) -> None:
        """Read from Redis how far the topic goes, and trim what a killed exporter left.

        Raises:
            ExportRefused: the events are exported to another place.
            EventsUnavailable: Redis does not answer.
        """
        try:
            self._positions = await self._events.attach(self._id, NO_KEY, [str(BEFORE_ALL)] * BUCKETS)
        except OtherExport:
            raise ExportRefused(
                f"topic {self._writer.target.topic!r}: the events of this Redis are exported to a directory or another "
                f"topic; name that one. {DETACH_HINT}"
            ) from None
        await self._events.trim(range(BUCKETS))

    async def export(self, *, min_events: int = 1, max_age_s: float = 0.0) -> Exported:
        """Export all erasures, then every bucket that has enough events, or one that is old enough.

        Args:
            min_events: events of a bucket from which it is exported.
            max_age_s: seconds after its arrival when an event is exported, however few there are.

        Raises:
            ExportRefused: another exporter wrote meanwhile.
            EventsUnavailable: Redis does not answer, or has lost what was recorded in it; nothing is lost, and
                :meth:`attach` comes first when it does.
            KafkaUnavailable: a record was not acknowledged; nothing is lost, and :meth:`attach` comes first.
        """
        positions = [StreamId.parse(position) for position in self._positions]
        waiting = await known_waiting(self._events, positions, f"topic {self._writer.target.topic!r}")
        done = Exported(files=None, lost=sum(part.lost for part in waiting))
        # Erasures first: the events that one covers are in the topic already, or are deleted.
        if any(part.erasing is not None for part in waiting):
            done = done.plus(Exported(erasures=await self._export_erasures()))
        for bucket in due_buckets(waiting, self._ages, min_events=min_events, max_age_s=max_age_s):
            done = done.plus(await self._export_bucket(bucket))
        return done

    async def _export_bucket(self, bucket: int) -> Exported:
        count, merges, last_page = 0, 0, False
        while not last_page:
            stored = await self._events.entries(bucket, self._positions[bucket], self._records_per_write)
            last_page = len(stored) < self._records_per_write
            if stored:
                await self._write(event_records(bucket, stored))
                await self._record(bucket, stored[-1][0].decode())
                await self._events.trim_read(bucket, pages_of(stored))
                count += len(stored)
                merges += sum(is_merge(fields) for _, fields in stored)
        return Exported(events=count - merges, files=None, merges=merges)

    async def _export_erasures(self) -> int:
        count = 0
        for bucket, found in (await self._events.erasures()).items():
            await self._write([erasure_record(bucket, user, until) for user, until in found.items()])
            await self._events.erasures_written(bucket, found)
            count += len(found)
        return count

    async def _write(self, records: Sequence[Record]) -> None:
        await asyncio.to_thread(self._writer.write, records)

    async def _record(self, bucket: int, now: str) -> None:
        try:
            await self._events.mark(bucket, self._id, self._positions[bucket], now)
        except ExportMoved:
            raise ExportRefused(
                f"topic {self._writer.target.topic!r}: another exporter exported {bucket_name(bucket)} meanwhile, so "
                "events of it are in the topic twice; end one of the two"
            ) from None
        self._positions[bucket] = now


def event_records(bucket: int, entries: Sequence[Entry]) -> list[Record]:
    """Records of stream entries: the key is the user or session, the value the row as JSON without empty fields.

    Args:
        bucket: of the entries.
        entries: in the order of their ids.
    """
    records = []
    for row in table_of(entries).to_pylist():
        value: dict[str, Any] = {name: given for name, given in row.items() if given is not None}
        value[ARRIVED] = StreamId.parse(row[STREAM_ID]).milliseconds / 1000
        if EXTRA in value:
            value[EXTRA] = orjson.loads(value[EXTRA])
        headers = {BUCKET_HEADER: bucket_name(bucket), STREAM_ID_HEADER: row[STREAM_ID]}
        records.append(Record(row[USER_ID] or "", orjson.dumps(value), headers))
    return records


def erasure_record(bucket: int, user_id: str, until: str) -> Record:
    """The record of an erasure: no value, and in the headers the last stream id that it covers."""
    return Record(user_id, None, {BUCKET_HEADER: bucket_name(bucket), ERASED_UNTIL_HEADER: until})
