"""Reads an export of events (`vlm2rec events export`) as interactions."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import polars as pl

from index.errors import EventExportError
from index.event_export.directory import ExportDirectory
from index.event_export.erasures import Erasures
from index.event_export.files import check_size, content_of
from index.event_export.manifest import DayManifest, ExportedFile
from index.event_export.merges import MERGED_INTO, merged_into
from index.event_export.object_path import ExportPath
from index.event_export.rows import ARRIVED, EXTRA, SCHEMA, STREAM_ID, USER_ID
from index.items.item_table import ITEM_ID
from training.data.dataset import TIMESTAMP
from training.errors import DatasetError

TYPE: Final = "type"
_COLUMNS: Final = (USER_ID, ITEM_ID, TIMESTAMP, TYPE, "value", "session_id", "request_id", "event_id")
_FUTURE_S: Final = 86_400
_LATE_S: Final = 3_600
_ATTEMPTS: Final = 3
_TIME, _SEQUENCE = "__time", "__sequence"


@dataclass(frozen=True)
class ExportCounts:
    """What became of the rows of an export.

    Attributes:
        rows: rows of all files, without those that record a merge.
        erased: of erased users, until their erasure; left out.
        merged: of sessions that were merged into a user later; kept as the user's.
        duplicates: of an event id that the user had sent before; left out.
        incomplete: without user, item or time; left out.
        future: more than a day later than their arrival; left out.
        late: more than an hour earlier than their arrival; kept, in the order of their times.
        out_of_order: earlier than an event of the user that arrived before; kept, in the order of their times.
        events: rows that are left.
    """

    rows: int
    erased: int
    merged: int
    duplicates: int
    incomplete: int
    future: int
    late: int
    out_of_order: int
    events: int

    def as_json(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


@dataclass(frozen=True)
class ExportedEvents:
    """Events of an export.

    Attributes:
        interactions: ``user_id``, ``item_id``, ``type``, ``session_id``, ``request_id``, ``event_id`` (strings),
            ``timestamp`` (float64 seconds since 1970 UTC), ``value`` (float64); a user's rows by time, ties by arrival.
        counts: what became of the rows.
        since: arrival of the first of them, seconds since 1970 UTC; infinite without events.
        until: id of the newest entry of the export, as in ``1790000000123-0``; empty without rows.
    """

    interactions: pl.DataFrame
    counts: ExportCounts
    since: float
    until: str


def read_export(root: str | ExportPath) -> ExportedEvents:
    """Read an export. An exporter or a compaction may be at work: what counts is what the manifests name.

    Args:
        root: the directory, or ``s3://bucket/prefix``.

    Raises:
        DatasetError: there is no export, or a file is missing or damaged, or the object store does not answer.
    """
    try:
        directory = ExportDirectory(root)
        for _ in range(_ATTEMPTS - 1):
            try:
                return _read(directory)
            except FileNotFoundError:  # a compaction has replaced the file meanwhile
                continue
        return _read(directory)
    except (EventExportError, OSError) as error:
        raise DatasetError(str(error)) from error
    except pl.exceptions.PolarsError as error:
        raise DatasetError(f"{root}: a file cannot be read ({str(error).splitlines()[0]}); restore it") from error


def _read(directory: ExportDirectory) -> ExportedEvents:
    files = [(day / file.name, file) for day in directory.days() for file in DayManifest.load(day).files.values()]
    erasures = directory.erasures()
    frame = _rows(files)
    rows = frame.height
    ids = pl.col(STREAM_ID).str.split_exact("-", 1)
    frame = frame.with_columns(
        ids.struct.field("field_0").cast(pl.UInt64).alias(_TIME),
        ids.struct.field("field_1").cast(pl.UInt64).alias(_SEQUENCE),
    ).sort(_TIME, _SEQUENCE, maintain_order=True)
    until = frame[STREAM_ID][-1] if rows else ""
    frame, erased = _without_erased(frame, erasures)
    frame, merges, merged = _with_merged_sessions(frame)
    frame, erased_later = _without_erased(frame, erasures)
    rows, erased = rows - merges, erased + erased_later
    complete = frame.drop_nulls([USER_ID, ITEM_ID, TIMESTAMP])
    incomplete = frame.height - complete.height
    once = complete.filter(pl.col("event_id").is_null() | pl.struct(USER_ID, "event_id").is_first_distinct())
    ahead = pl.col(TIMESTAMP) - pl.col(ARRIVED).dt.epoch("ms") / 1000
    left = once.filter(ahead <= _FUTURE_S)
    disordered = pl.col(TIMESTAMP) < pl.col(TIMESTAMP).cum_max().over(USER_ID)
    counts = ExportCounts(
        rows=rows,
        erased=erased,
        merged=merged,
        duplicates=complete.height - once.height,
        incomplete=incomplete,
        future=once.height - left.height,
        late=int(left.select((ahead < -_LATE_S).sum()).item()),
        out_of_order=int(left.select(disordered.sum()).item()),
        events=left.height,
    )
    since = int(left[ARRIVED].dt.epoch("ms")[0]) / 1000 if left.height else math.inf
    return ExportedEvents(left.sort(TIMESTAMP, maintain_order=True).select(_COLUMNS), counts, since, until)


def _rows(files: Sequence[tuple[ExportPath, ExportedFile]]) -> pl.DataFrame:
    """The rows of all files.

    Raises:
        FileNotFoundError: a file is missing.
        EventExportError: a file is not as its manifest says.
    """
    sources: list[Path | bytes] = []
    for path, file in files:
        if isinstance(path, Path):
            check_size(path, path.stat().st_size, file.size)
            sources.append(path)
        else:
            sources.append(content_of(path, size=file.size))
    if not files:
        return pl.DataFrame(SCHEMA.empty_table())
    return pl.read_parquet(sources, glob=False, hive_partitioning=False)  # type: ignore[arg-type]  # paths or bytes


def _without_erased(frame: pl.DataFrame, erasures: Erasures) -> tuple[pl.DataFrame, int]:
    """The rows that no erasure covers, and how many one does."""
    until = erasures.until(frame[USER_ID].drop_nulls().unique().to_list())
    if not until:
        return frame, 0
    covered = pl.DataFrame(
        {
            USER_ID: list(until),
            "until_time": [last.milliseconds for last in until.values()],
            "until_sequence": [last.sequence for last in until.values()],
        },
        schema={USER_ID: pl.String, "until_time": pl.UInt64, "until_sequence": pl.UInt64},
    )
    joined = frame.join(covered, on=USER_ID, how="left", maintain_order="left")
    later = pl.col(_TIME) > pl.col("until_time")
    same = (pl.col(_TIME) == pl.col("until_time")) & (pl.col(_SEQUENCE) > pl.col("until_sequence"))
    left = joined.filter(pl.col("until_time").is_null() | later | same).drop("until_time", "until_sequence")
    return left, frame.height - left.height


def _with_merged_sessions(frame: pl.DataFrame) -> tuple[pl.DataFrame, int, int]:
    """Rows in which a session is the user that it was merged into later.

    Args:
        frame: rows by id.

    Returns:
        The rows without those of merges, the number of these, and how many rows became the user's.
    """
    place, user = "__place", "__user"
    frame = frame.with_row_index(place)
    named = frame.filter(pl.col(EXTRA).str.contains(MERGED_INTO, literal=True)).select(place, EXTRA)
    users = pl.Series(user, [merged_into(extra) for extra in named[EXTRA].to_list()], dtype=pl.String)
    merges = named.select(place).with_columns(users).drop_nulls()
    if merges.is_empty():
        return frame.drop(place), 0, 0
    joined = frame.join(merges, on=place, how="left", maintain_order="left").with_columns(
        pl.col(user).is_not_null().alias(MERGED_INTO), pl.col(user).backward_fill().over(USER_ID)
    )
    left = joined.filter(~pl.col(MERGED_INTO))
    merged = left.height - left[user].null_count()
    left = left.with_columns(pl.coalesce(user, USER_ID).alias(USER_ID)).drop(place, user, MERGED_INTO)
    return left, merges.height, merged
