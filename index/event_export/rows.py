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
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    for entry_id, fields in entries:
        rest = {name: value for name, value in fields.items() if name not in _TEXTS and name not in _NUMBERS}
        columns[STREAM_ID].append(str(entry_id))
        columns[ARRIVED].append(min(entry_id.milliseconds, _LAST_MILLISECOND))
        for name in _TEXTS:
            columns[name].append(fields.get(name) or None)
        for name in _NUMBERS:
            sent = fields.get(name) or None
            number = None if sent is None else _number(sent)
            columns[name].append(number)
            if sent is not None and number is None:
                rest[name] = sent
        columns[EXTRA].append(json.dumps(rest, ensure_ascii=False, sort_keys=True) if rest else None)
    return pa.table(columns, schema=SCHEMA)


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
    """
    try:
        content = pa.BufferReader(content_of(path, size=size))
        table = pq.read_table(content, partitioning=None, page_checksum_verification=True)
    except FileNotFoundError:
        raise
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
