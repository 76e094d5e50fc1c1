"""A directory of exported events, on a file system or in an object store.

``export.json``                  id of the export and the key of its erasures; secret
``day=2026-11-30/manifest.json`` which files count, and how far each bucket is exported; written after its files
``day=2026-11-30/b017-….parquet`` events of one bucket that arrived on that day (UTC), by id
``positions.json``               how far each bucket is exported, also where its days were deleted
``erasures/b017.json``           erased users of a bucket, as keyed hashes

A file that no manifest names does not count: its job was killed, and a later one deletes it.

An object store has no locks. There, names of files end with a token of their process, so no process replaces a file of
another one, and a manifest is replaced on the condition that it is as it was read. A file that no manifest names within
an hour of its writing never counts, and is deleted a day after it.
"""

import json
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import time
from typing import Final, Self

from index.errors import EventExportError, ExportBusy, ExportUnavailable
from index.event_export.erasures import ERASURES_DIRECTORY, Erasures, add_erasures, load_erasures
from index.event_export.files import (
    children,
    delete,
    disk_errors,
    is_of_a_killed_job,
    make_directory,
    replace_read,
    sync,
)
from index.event_export.json_file import read_json
from index.event_export.manifest import DAY_PREFIX, DayManifest, ExportedFile, ends_of
from index.event_export.object_path import ExportObjectChanged, ExportPath, ObjectPath, export_path
from index.event_export.positions import Positions, add_positions, later, load_positions
from index.event_export.rows import days_of, table_of, write_rows
from index.event_export.stream_ids import BEFORE_ALL, Entry, FileRange, StreamId
from index.machine.locks import file_lock

_EXPORT_FILE: Final = "export.json"
_FORMAT: Final = 1
_EXPORTER_LOCK: Final = ".exporter.lock"
_WRITE_LOCK: Final = ".write.lock"
_ERASURE_FILE: Final = re.compile(r"b(\d{3})\.json")
_LONGEST_WRITING_S: Final = 3600.0
ATTEMPTS: Final = 8
"""How often a change is tried in an object store while other processes change the same file."""


class ExportDirectory:
    """An existing export.

    Args:
        root: the directory, or ``s3://bucket/prefix``.

    Attributes:
        root: the directory.
        token: in the names of new files of this process; empty on a file system.
        id: random name of this export, by which Redis knows it.
        key: of its erasures, hexadecimal.

    Raises:
        EventExportError: there is no export, or ``export.json`` cannot be read.
        ExportUnavailable: the object store does not answer, or refuses.
    """

    def __init__(self, root: str | ExportPath) -> None:
        root = export_path(root)
        path, remedy = root / _EXPORT_FILE, "check its permissions, or restore it from a copy"
        written = read_json(path, _FORMAT, remedy)
        if written is None:
            raise EventExportError(f"{root}: there is no export; `vlm2rec events export --to {root}` makes one")
        try:
            self.id, self.key = str(written["id"]), str(written["key"])
        except KeyError as error:
            raise EventExportError(f"{path}: lacks {error}; {remedy}") from error
        self.root: ExportPath = root
        self.token = secrets.token_hex(4) if isinstance(root, ObjectPath) else ""
        self._began = 0.0  # when the oldest file was written that does not count yet; 0: there is none

    @classmethod
    def open_or_create(cls, root: str | ExportPath) -> Self:
        """Open an export; make one in a directory that is new or empty.

        Raises:
            EventExportError: the directory has other files.
            DiskError: it cannot be written.
            ExportUnavailable: the object store does not answer, or refuses.
        """
        root = export_path(root)
        with disk_errors(root):
            if isinstance(root, ObjectPath):
                _create_in_store(root)
            else:
                root.mkdir(parents=True, exist_ok=True)
                if not (root / _EXPORT_FILE).exists():
                    _check_empty(root)
                    with file_lock(root / _WRITE_LOCK, wait=True):
                        if not (root / _EXPORT_FILE).exists():
                            _create(root)
        return cls(root)

    @contextmanager
    def exporting(self) -> Iterator[None]:
        """Hold the lock of the only exporter while the block runs; in an object store :meth:`commit` finds another.

        Raises:
            ExportBusy: another exporter holds it.
            DiskError: the directory cannot be written.
        """
        with self._locked(_EXPORTER_LOCK, wait=False):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of manifests while the block runs; waits for another writer, such as a compaction.

        An object store has no lock: there a write of what another process has changed fails.

        Raises:
            DiskError: the directory cannot be written.
        """
        with self._locked(_WRITE_LOCK, wait=True):
            yield

    @contextmanager
    def _locked(self, name: str, *, wait: bool) -> Iterator[None]:
        from filelock import Timeout

        if isinstance(self.root, ObjectPath):
            yield
            return
        lock = file_lock(self.root / name, wait=wait)
        try:
            with disk_errors(self.root):
                lock.acquire()
        except Timeout:
            raise ExportBusy(f"{self.root}: another exporter is at work here; end it first") from None
        try:
            yield
        finally:
            lock.release()

    def days(self) -> list[ExportPath]:
        """The directories of the days, oldest first."""
        return [path for path in children(self.root) if path.name.startswith(DAY_PREFIX) and "." not in path.name]

    def positions(self) -> Positions:
        """The last exported id by bucket, also of deleted days; buckets without events are left out.

        Raises:
            EventExportError: a manifest or the file of the positions is damaged.
        """
        found = load_positions(self.root)
        for day in self.days():
            found = later(found, DayManifest.load(day).positions)
        return found

    def records_positions(self) -> bool:
        """Whether the positions have a file of their own; exports of earlier versions have none until they are written.

        Raises:
            EventExportError: the file is damaged.
            ExportUnavailable: the object store does not answer, or refuses.
        """
        return bool(load_positions(self.root))

    def is_of_a_deleted_day(self, entry: StreamId) -> bool:
        """Whether the day of an entry comes before all days that are here, as the oldest ones are deleted first."""
        days = self.days()
        return bool(days) and f"{DAY_PREFIX}{entry.day}" < days[0].name

    def add_positions(self, positions: Positions) -> None:
        """Record how far buckets are exported, so that it stays known where days are deleted.

        Raises:
            EventExportError: the file of the positions is damaged.
            DiskError: it cannot be written.
            ExportUnavailable: the object store does not answer, or refuses.
        """
        with self.writing(), disk_errors(self.root):
            self._changed(partial(add_positions, self.root, positions))

    def write_entries(self, bucket: int, entries: Sequence[Entry]) -> dict[str, ExportedFile]:
        """Write entries to new files, one a day; they count once :meth:`commit` has named them.

        Args:
            bucket: of the entries.
            entries: at least one, in the order of their ids.

        Returns:
            The file by name of its day.

        Raises:
            DiskError: a file cannot be written.
            EventExportError: an id is none of a stream.
        """
        written = {}
        self.note_writing()
        with disk_errors(self.root):
            table = table_of(entries)
            for start, end in days_of(table):
                first, last = (StreamId.parse(entries[row][0].decode()) for row in (start, end - 1))
                name = FileRange(bucket, first, last, token=self.token).file_name
                directory = self.root / f"{DAY_PREFIX}{first.day}"
                make_directory(directory)
                size = write_rows(directory / name, table.slice(start, end - start))
                written[first.day] = ExportedFile(name, end - start, size)
        return written

    def commit(self, written: Sequence[Mapping[str, ExportedFile]]) -> None:
        """Name files in the manifests of their days, the oldest day first, then record the positions of the buckets.

        Args:
            written: results of :meth:`write_entries`.

        Raises:
            DiskError: a manifest cannot be written; the files of its day and of later ones do not count. Or the
                positions cannot; all files count.
            ExportBusy: another exporter has exported the same events; the files do not count.
            ExportUnavailable: the object store does not answer, or refuses; the files may count.
        """
        by_day: dict[str, list[ExportedFile]] = defaultdict(list)
        for files in written:
            for day, file in files.items():
                by_day[day].append(file)
        with self.writing(), disk_errors(self.root):
            for day in sorted(by_day):
                directory = self.root / f"{DAY_PREFIX}{day}"
                sync(directory)
                self._changed(partial(self._commit_day, directory, by_day[day]))
            self.begin_writing()
            ends = ends_of(file for files in by_day.values() for file in files)
            self._changed(partial(add_positions, self.root, ends))

    def _commit_day(self, directory: ExportPath, files: list[ExportedFile]) -> None:
        manifest = DayManifest.load(directory)
        for file in files if self.token else ():  # on a file system the lock of the exporter excludes another one
            position = manifest.positions.get(file.range.bucket, BEFORE_ALL)
            if file.name not in manifest.files and file.range.first <= position:
                raise ExportBusy(f"{self.root}: another exporter is at work here; end it first")
        self.check_in_time()
        manifest.with_files(files).save(directory)

    def check_in_time(self) -> None:
        """Check that the files written in an object store are young enough to count.

        Raises:
            ExportUnavailable: they are more than an hour old, as the process or its machine slept.
        """
        if self.token and self._began and time() - self._began > _LONGEST_WRITING_S:
            raise ExportUnavailable(f"{self.root}: writing took more than an hour; the files do not count")

    def note_writing(self) -> None:
        """Note that a file is written that does not count yet."""
        self._began = self._began or time()

    def begin_writing(self) -> None:
        """Note that the files written so far count, or never will; see :meth:`check_in_time`."""
        self._began = 0.0

    def add_erasures(self, bucket: int, erased: Mapping[str, StreamId]) -> None:
        """Add erasures of a bucket: hash → the last id that it covers.

        Raises:
            DiskError: they cannot be written.
            ExportUnavailable: the object store does not answer, or refuses.
        """
        with self.writing(), disk_errors(self.root):
            self._changed(lambda: add_erasures(self.root, bucket, erased))
            sync(self.root)

    def _changed(self, change: Callable[[], None]) -> None:
        """Make a change; in an object store again while other processes change the same file.

        Raises:
            ExportUnavailable: they went on changing it.
        """
        for _ in range(ATTEMPTS):
            try:
                change()
            except ExportObjectChanged:
                continue
            return
        raise ExportUnavailable(f"{self.root}: other processes go on changing the same file; try again")

    def erasures(self) -> Erasures:
        """The erased users of all buckets.

        Raises:
            EventExportError: a file is damaged.
        """
        erased: dict[str, StreamId] = {}
        for path in children(self.root / ERASURES_DIRECTORY):
            if found := _ERASURE_FILE.fullmatch(path.name):
                erased |= load_erasures(self.root, int(found[1]))
        return Erasures(self.key, erased)

    def delete_uncounted(self) -> None:
        """Delete files that no manifest names, of killed jobs; the caller holds :meth:`exporting`.

        Raises:
            EventExportError: a manifest is damaged.
            DiskError: a file cannot be deleted.
            ExportUnavailable: the object store does not answer, or refuses.
        """
        self.begin_writing()
        with self.writing(), disk_errors(self.root):
            for day in self.days():
                counted = DayManifest.load(day).files
                for path in children(day):
                    is_file = path.name.endswith((".parquet", ".part"))
                    if is_file and path.name not in counted and is_of_a_killed_job(path):
                        delete(path)


def _check_empty(root: ExportPath) -> None:
    """Check that a directory has no files but hidden ones.

    Raises:
        EventExportError: it has others.
    """
    names = {path.name for path in children(root)}
    foreign = sorted(name for name in names if not name.startswith("."))
    if foreign and _EXPORT_FILE not in names:
        raise EventExportError(
            f"{root}: has files and is no export (it has {foreign[0]!r} and no {_EXPORT_FILE}); name a new directory"
        )


def _create(root: Path) -> None:
    """Make an export; the caller holds a lock.

    Raises:
        OSError: the directory cannot be written.
    """
    before = os.umask(0o077)  # a reader of the key can find out whether a user was erased
    try:
        replace_read(root / _EXPORT_FILE, _new_export())
    finally:
        os.umask(before)


def _create_in_store(root: ObjectPath) -> None:
    """Make an export unless there is one; of two processes that do so at once, one does."""
    path = root / _EXPORT_FILE
    try:
        path.read_bytes()
    except FileNotFoundError:
        _check_empty(root)
        with suppress(ExportObjectChanged):
            path.replace_read(_new_export())


def _new_export() -> bytes:
    return json.dumps({"format": _FORMAT, "id": secrets.token_hex(8), "key": secrets.token_hex(32)}).encode()
