"""Removes the rows of erased users from an export, and joins the files of a bucket and day."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from index.errors import EventExportError, ExportUnavailable
from index.event_export.directory import ATTEMPTS, ExportDirectory
from index.event_export.erasures import Erasures
from index.event_export.files import children, delete, disk_errors, is_of_a_killed_job, sync
from index.event_export.manifest import DayManifest, ExportedFile
from index.event_export.object_path import ExportObjectChanged, ExportPath
from index.event_export.rows import STREAM_ID, USER_ID, read_rows, write_rows
from index.event_export.stream_ids import BEFORE_ALL, FileRange, StreamId


@dataclass(frozen=True)
class Compacted:
    """What a compaction did to one day.

    Attributes:
        day: name of the day's directory.
        erased: rows removed.
        files_before: files of the day before.
        files: files of the day now.
    """

    day: str
    erased: int
    files_before: int
    files: int


def compact(directory: ExportDirectory) -> Iterator[Compacted]:
    """Compact an export day by day; an exporter may be at work. A killed compaction leaves each day as it was or done.

    Args:
        directory: the export.

    Yields:
        One result for each day that changed, once it is on the disk.

    Raises:
        EventExportError: a file is missing or damaged.
        DiskError: the directory cannot be written.
        ExportUnavailable: the object store does not answer, or refuses, or others go on changing a day.
    """
    for day in directory.days():
        for _ in range(ATTEMPTS):
            try:
                with directory.writing():
                    done = _compact_day(directory, day, directory.erasures())
            except ExportObjectChanged:
                continue
            if done is not None:
                yield done
            break
        else:
            raise ExportUnavailable(f"{day}: other processes go on changing its manifest; compact it later")


def _compact_day(directory: ExportDirectory, day: ExportPath, erasures: Erasures) -> Compacted | None:
    """Compact one day; the caller holds the lock of manifests.

    Raises:
        ExportObjectChanged: another process has changed the day in the object store meanwhile.
    """
    directory.begin_writing()
    manifest = DayManifest.load(day)
    _delete_replaced(directory, day, manifest)
    by_bucket: dict[int, list[ExportedFile]] = defaultdict(list)
    for file in manifest.files.values():
        by_bucket[file.range.bucket].append(file)
    kept, replaced, erased = dict(manifest.files), set[str](), 0
    with disk_errors(directory.root):
        for bucket, files in sorted(by_bucket.items()):
            whole = _joined(day, sorted(files, key=lambda file: file.range.first))
            left = _without_erased(whole, erasures)
            if len(files) == 1 and left.num_rows == whole.num_rows:
                continue
            for file in files:
                del kept[file.name]
                replaced.add(file.name)
            erased += whole.num_rows - left.num_rows
            if left.num_rows:
                ranges = [file.range for file in files]
                span = FileRange(
                    bucket,
                    min(part.first for part in ranges),
                    max(part.last for part in ranges),
                    max(part.compaction for part in ranges) + 1,
                    directory.token,
                )
                directory.note_writing()
                size = write_rows(day / span.file_name, left)
                kept[span.file_name] = ExportedFile(span.file_name, left.num_rows, size)
        if not replaced:
            return None
        sync(day)
        try:
            directory.check_in_time()
            DayManifest(kept, manifest.positions).save(day)
        except ExportObjectChanged:
            # The files count where this manifest was written, its answer was lost, and another process went on from it.
            for name in kept.keys() - manifest.files.keys() - DayManifest.load(day).files.keys():
                delete(day / name)
            raise
        for name in replaced:
            delete(day / name)
    return Compacted(day.name, erased, len(manifest.files), len(kept))


def _joined(day: ExportPath, files: list[ExportedFile]) -> pa.Table:
    """The rows of the files of one bucket, by id.

    Raises:
        EventExportError: a file is missing or damaged.
        ExportObjectChanged: another compaction has replaced it in the object store meanwhile.
    """
    tables = []
    for file in files:
        try:
            table = read_rows(day / file.name, file.size)
        except FileNotFoundError as error:
            if file.name not in DayManifest.load(day).files:
                raise ExportObjectChanged(str(day)) from error
            raise EventExportError(f"{day / file.name}: the file is missing; restore it from a copy") from error
        if table.num_rows != file.rows:
            raise EventExportError(
                f"{day / file.name}: has {table.num_rows:,} rows, the manifest says {file.rows:,}; restore it from "
                "a copy"
            )
        tables.append(table)
    return pa.concat_tables(tables)


def _without_erased(table: pa.Table, erasures: Erasures) -> pa.Table:
    """The rows that no erasure covers."""
    users = table.column(USER_ID).to_pylist()
    until = erasures.until({user for user in users if user is not None})
    if not until:
        return table
    ids = table.column(STREAM_ID).to_pylist()
    kept = [StreamId.parse(entry_id) > until.get(user, BEFORE_ALL) for user, entry_id in zip(users, ids, strict=True)]
    return table.filter(pa.array(kept))


def _delete_replaced(directory: ExportDirectory, day: ExportPath, manifest: DayManifest) -> None:
    """Delete what a killed compaction left; files behind the positions are of an exporter at work."""
    with disk_errors(directory.root):
        for path in children(day):
            if path.name.startswith(".") or not path.name.endswith(".parquet") or path.name in manifest.files:
                continue
            span = FileRange.of_file(path.name)
            if span.last <= manifest.positions.get(span.bucket, BEFORE_ALL) and is_of_a_killed_job(path):
                delete(path)
