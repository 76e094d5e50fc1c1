"""Stream entries as rows of a Parquet file."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from index.errors import EventExportError
from index.event_export.files import content_of, write_new
from index.event_export.object_path import ExportPath
from index.event_export.stream_ids import StreamId

Entry = tuple[StreamId, Mapping[str, str]]
"""Id and fields of a stream entry."""

STREAM_ID: Final = "stream_id"
ARRIVED: Final = "arrived"
USER_ID: Final = "user_id"
EXTRA: Final = "extra"
_TEXTS: Final = (USER_ID, "item_id", "type", "event_id", "request_id", "session_id")
_NUMBERS: Final = ("timestamp", "value")
_COLUMNS: Final = frozenset((*_TEXTS, *_NUMBERS))
SCHEMA: Final = pa.schema(
    [
        pa.field(STREAM_ID, pa.string(), nullable=False),
        pa.field(ARRIVED, pa.timestamp("ms", "UTC"), nullable=False),
        pa.field(USER_ID, pa.string()),
        pa.field("item_id", pa.string()),
        pa.field("timestamp", pa.float64()),
        pa.field("type", pa.string()),
        pa.field("event_id", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("value", pa.float64()),
        pa.field(EXTRA, pa.string()),
    ]
)
"""``arrived``: clock of Redis. ``timestamp``: as sent, seconds since 1970. ``extra``: other fields as a JSON object."""
_LAST_MILLISECOND: Final = 2**63 - 1


def table_of(entries: Sequence[Entry]) -> pa.Table:
    """Rows of stream entries, in their order.

    A field that is empty is null. A field without a column, and a number that cannot be read, is in ``extra``.

    Args:
        entries: of one bucket.
    """
    stored = [fields for _, fields in entries]
    columns: dict[str, list[object]] = {
        STREAM_ID: [str(entry_id) for entry_id, _ in entries],
        ARRIVED: [min(entry_id.milliseconds, _LAST_MILLISECOND) for entry_id, _ in entries],
    }
    for name in _TEXTS:
        columns[name] = [fields.get(name) or None for fields in stored]
    for name in _NUMBERS:
        columns[name] = [_number(sent) if (sent := fields.get(name)) else None for fields in stored]
    numbers = zip(*(columns[name] for name in _NUMBERS), strict=True)
    columns[EXTRA] = [_extra(fields, read) for fields, read in zip(stored, numbers, strict=True)]
    return pa.table(columns, schema=SCHEMA)


def _extra(fields: Mapping[str, str], numbers: Sequence[object]) -> str | None:
    """The fields that have no column, and the numbers that cannot be read, as JSON; None if there are none."""
    rest = {} if fields.keys() <= _COLUMNS else {name: fields[name] for name in fields.keys() - _COLUMNS}
    for name, number in zip(_NUMBERS, numbers, strict=True):
        if number is None and (sent := fields.get(name)):
            rest[name] = sent
    return json.dumps(rest, ensure_ascii=False, sort_keys=True) if rest else None


def write_rows(path: ExportPath, table: pa.Table) -> int:
    """Write a Parquet file, whole or not at all; the caller flushes the directory.

    Args:
        path: the file; its directory must exist.
        table: its rows.

    Returns:
        Its size in bytes.

    Raises:
        OSError: it cannot be written.
        ExportUnavailable: the object store does not answer, or refuses.
    """
    content = pa.BufferOutputStream()
    pq.write_table(table, content, compression="zstd", write_page_checksum=True)
    written = content.getvalue()
    write_new(path, written.to_pybytes())
    return int(written.size)


def read_rows(path: ExportPath, size: int | None = None) -> pa.Table:
    """Read an exported file, and verify the checksums of its pages.

    Args:
        path: the file.
        size: bytes that it must have, as its manifest says; None: it is not known.

    Raises:
        FileNotFoundError: there is no such file.
        ExportUnavailable: the object store does not answer, or refuses.
        EventExportError: it cannot be read, has another size, or its columns are not those of an export.
        MemoryError: there is not enough memory.
    """
    try:
        content = pa.BufferReader(content_of(path, size=size))
        # Arrow waits without end for a thread that could not be started for want of memory.
        with pq.ParquetFile(content, pre_buffer=False, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
    except (FileNotFoundError, pa.ArrowMemoryError):
        raise  # too little memory says nothing about the file
    except (OSError, pa.ArrowException) as error:
        raise EventExportError(f"{path}: cannot be read ({error}); restore it from a copy") from error
    if table.schema.names != SCHEMA.names:
        raise EventExportError(f"{path}: has the columns {', '.join(table.schema.names)}, not those of an export")
    return table


def _number(text: str) -> float | None:
    """A finite number; None if the text is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
