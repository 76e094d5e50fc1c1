"""Exports the event streams to a directory, each event exactly once, and trims them by what was exported.

The directory alone says what is exported, by its manifests and the positions that outlive deleted days. A round reads
entries behind the positions, writes files, adds the erasures that were made meanwhile, commits the manifests, and only
then records the positions in Redis and trims. A round that ended anywhere is repeated from the same positions: its
files did not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from index.event_export.directory import ExportDirectory
from index.event_export.merges import is_merge
from index.event_export.stream_ids import BEFORE_ALL, StreamId, bucket_name
from service.errors import EventsUnavailable, ExportRefused
from service.stores.event_export.redis_event_export import (
    ExportMoved,
    OtherExport,
    ReadPage,
    RedisEventExport,
    Waiting,
    lost_record,
    pages_of,
)
from service.stores.event_export.waiting_ages import WaitingAges
from service.stores.history_keys import BUCKETS, bucket_cap

DETACH_HINT: Final = "`vlm2rec events detach` lets another directory begin"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported.

    Attributes:
        events: number of events.
        files: number of files; None where events go to a topic.
        erasures: number of erasures.
        merges: number of merges of sessions.
        lost: events cut before they were exported, since the export began.
    """

    events: int = 0
    files: int | None = 0
    erasures: int = 0
    merges: int = 0
    lost: int = 0

    def plus(self, other: "Exported") -> "Exported":
        """Both together."""
        return Exported(
            self.events + other.events,
            None if self.files is None or other.files is None else self.files + other.files,
            self.erasures + other.erasures,
            self.merges + other.merges,
            max(self.lost, other.lost),
        )


def most_waiting(rows_per_file: int, stream_cap: int) -> int:
    """Events of a bucket from which it is exported before they are old.

    That is a full file, or a quarter of the events after which the service cuts the oldest ones of a bucket, exported
    or not, so that three quarters are left for what arrives meanwhile.

    Args:
        rows_per_file: most events of a file.
        stream_cap: events that the service keeps in all buckets (`VLM2REC_STREAM_CAP`).
    """
    return max(1, min(rows_per_file, bucket_cap(stream_cap) // 4))


def due_buckets(waiting: Sequence[Waiting], ages: WaitingAges, *, min_events: int, max_age_s: float) -> list[int]:
    """The buckets that are to be exported now.

    Args:
        waiting: what is not exported, for each bucket.
        ages: of what waits, since the export began.
        min_events: events of a bucket from which it is exported.
        max_age_s: seconds after its arrival when an event is exported, however few there are.
    """
    return [
        bucket
        for bucket, (part, age) in enumerate(zip(waiting, ages.seconds(waiting), strict=True))
        if age is not None and (part.events >= min_events or age >= max_age_s)
    ]


async def known_waiting(events: RedisEventExport, positions: Sequence[StreamId], place: str) -> list[Waiting]:
    """What is not exported, where Redis knows of everything that this exporter has recorded.

    Args:
        events: the streams.
        positions: for each bucket the last id that was recorded.
        place: of the export, for messages.

    Raises:
        ExportRefused: the export was detached.
        EventsUnavailable: Redis does not answer, or has lost a record, as a failover can.
    """
    waiting = await events.waiting()
    if waiting is None and await events.is_detached():
        raise ExportRefused(f"{place}: the export was detached meanwhile; start it again")
    if waiting is None:
        raise EventsUnavailable(lost_record(0))
    for bucket, (part, position) in enumerate(zip(waiting, positions, strict=True)):
        if part.exported is None or StreamId.parse(part.exported) < position:
            raise EventsUnavailable(lost_record(bucket))
    return waiting


class Exporter:
    """The only exporter of a directory; the caller holds `ExportDirectory.exporting`.

    Args:
        events: the streams.
        directory: the export.
        rows_per_file: most events of a file.
    """

    def __init__(self, events: RedisEventExport, directory: ExportDirectory, *, rows_per_file: int) -> None:
        self._events = events
        self._directory = directory
        self._rows_per_file = rows_per_file
        self._positions: list[StreamId] = []
        self._ages = WaitingAges()
        self._full: set[int] = set()  # buckets that may have more entries than the last round took

    async def attach(self) -> None:
        """Read how far the directory goes, record that in Redis, and trim what a killed exporter left.

        Raises:
            ExportRefused: another directory is exported to, or this one is an older copy.
            EventsUnavailable: Redis does not answer.
            EventExportError: a manifest or the file of the positions is damaged.
            DiskError: the directory cannot be written.
        """
        self._directory.delete_uncounted()
        forgets = not self._directory.records_positions()  # of deleted days, as exports of earlier versions do
        found = self._directory.positions()
        positions = [found.get(bucket, BEFORE_ALL) for bucket in range(BUCKETS)]
        root, sent = self._directory.root, [str(position) for position in positions]
        try:
            known = await self._events.attach(self._directory.id, self._directory.key, sent)
        except OtherExport:
            raise ExportRefused(
                f"{root}: the events of this Redis are exported to another directory; name that one. {DETACH_HINT}"
            ) from None
        for bucket, recorded in enumerate(map(StreamId.parse, known)):
            position = positions[bucket]
            if recorded <= position:
                continue
            if not (forgets and self._directory.is_of_a_deleted_day(recorded)):
                raise ExportRefused(
                    f"{root}: {bucket_name(bucket)} is exported up to {recorded}, but this directory ends at "
                    f"{position}: it is an older copy; name the newer one. {DETACH_HINT}"
                )
            positions[bucket] = recorded
        self._positions = positions
        self._directory.add_positions({bucket: last for bucket, last in enumerate(positions) if last != BEFORE_ALL})
        for bucket, (before, now) in enumerate(zip(known, map(str, positions), strict=True)):
            if before != now:
                await self._record(bucket, before, now)
        await self._events.trim(range(BUCKETS))

    async def export(self, *, min_events: int = 1, max_age_s: float = 0.0) -> Exported:
        """Export every bucket that has enough events, or one that is old enough, and all erasures.

        Args:
            min_events: events of a bucket from which it is exported.
            max_age_s: seconds after its arrival when an event is exported, however few there are.

        Raises:
            ExportRefused: another exporter wrote meanwhile.
            EventsUnavailable: Redis does not answer, or has lost what was recorded in it; nothing is lost, and
                :meth:`attach` comes first when it does.
            DiskError: the directory cannot be written; nothing is lost.
        """
        waiting = await known_waiting(self._events, self._positions, str(self._directory.root))
        due = due_buckets(waiting, self._ages, min_events=min_events, max_age_s=max_age_s)
        done = Exported(lost=sum(part.lost for part in waiting))
        if not due and any(part.erasing is not None for part in waiting):
            return done.plus(await self._round([]))
        while due:
            done = done.plus(await self._round(due))
            due = [bucket for bucket in due if bucket in self._full]
        return done

    async def _round(self, due: Sequence[int]) -> Exported:
        """Export one file of each of these buckets, and a second one where midnight lies between."""
        written, merges, read = [], 0, dict[int, list[ReadPage]]()
        before, self._full = list(self._positions), set()
        for bucket in due:
            entries = await self._events.entries(bucket, str(before[bucket]), self._rows_per_file)
            if len(entries) == self._rows_per_file:
                self._full.add(bucket)
            if entries:
                written.append(self._directory.write_entries(bucket, entries))
                self._positions[bucket] = StreamId.parse(entries[-1][0].decode())
                merges += sum(is_merge(fields) for _, fields in entries)
                read[bucket] = pages_of(entries)
        # After the reading of events: an erasure of a user whose events were read is in the directory before they are.
        erasures = await self._export_erasures()
        self._directory.commit(written)
        for bucket in read:
            await self._record(bucket, str(before[bucket]), str(self._positions[bucket]))
        for bucket, pages in read.items():  # one after another, so that other clients wait for one page at most
            await self._events.trim_read(bucket, pages)
        files = [file for of_bucket in written for file in of_bucket.values()]
        return Exported(sum(file.rows for file in files) - merges, len(files), erasures, merges)

    async def _export_erasures(self) -> int:
        count = 0
        for bucket, found in (await self._events.erasures()).items():
            self._directory.add_erasures(bucket, {name: StreamId.parse(until) for name, until in found.items()})
            await self._events.erasures_written(bucket, found)
            count += len(found)
        return count

    async def _record(self, bucket: int, before: str, now: str) -> None:
        try:
            await self._events.mark(bucket, self._directory.id, before, now)
        except ExportMoved:
            raise ExportRefused(
                f"{self._directory.root}: another exporter exported {bucket_name(bucket)} meanwhile, from a copy of "
                "this directory; end one of the two, and keep the directory that went further"
            ) from None
