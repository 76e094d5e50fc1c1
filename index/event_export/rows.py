"""Stream entries as rows of a Parquet file."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.errors import EventExportError
from index.event_export.files import content_of, write_new
from index.event_export.object_path import ExportPath
from index.event_export.stream_ids import DAY_MS, LAST_MILLISECOND, Entry, StreamId

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
_LARGEST: Final = 2**63 - 1
_NO_TEXT: Final = pa.scalar(None, pa.string())
_NO_NUMBER: Final = pa.scalar(None, pa.float64())


def table_of(entries: Sequence[Entry]) -> pa.Table:
    """Rows of stream entries, in their order.

    A field that is empty is null. A field without a column, and a number that cannot be read, is in ``extra``. Bytes
    that are not UTF-8, written by another program, are replaced.

    Columns are made by Arrow, not row by row: an exporter that follows shares the machine with the service.

    Args:
        entries: at least one, of one bucket.

    Raises:
        EventExportError: an id has another form.
    """
    ids = pa.array([entry_id for entry_id, _ in entries], pa.binary()).cast(pa.string())
    columns = [ids, _arrivals(ids)]
    stored = [fields for _, fields in entries]
    shapes = _rows_by_names(stored)
    parts = [
        _columns_of(names, stored if len(rows) == len(stored) else [stored[row] for row in rows])
        for names, rows in shapes.items()
    ]
    table = pa.concat_tables(parts)
    if len(parts) > 1:
        table = table.take(np.argsort(np.fromiter(chain.from_iterable(shapes.values()), np.int64, len(stored))))
    return pa.table([*columns, *table.columns], schema=SCHEMA)


def _arrivals(ids: pa.Array) -> pa.Array:
    """Milliseconds since 1970, the first number of each id."""
    try:
        found = pc.list_element(pc.split_pattern(ids, "-"), 0).cast(pa.int64())
    except pa.ArrowInvalid:  # written by another program: up to 64 bits without a sign
        milliseconds = [StreamId.parse(entry_id).milliseconds for entry_id in ids.to_pylist()]
        found = pa.array([min(number, _LARGEST) for number in milliseconds], pa.int64())
    return found.cast(SCHEMA.field(ARRIVED).type)


def _rows_by_names(stored: Sequence[Sequence[bytes]]) -> dict[tuple[bytes, ...], Sequence[int]]:
    """The rows that have the same names of fields in the same order, by these names."""
    names = tuple(stored[0][::2])
    width = 2 * len(names)
    if all(len(fields) == width for fields in stored):
        columns = list(zip(*stored, strict=True))[::2]
        if all(column.count(name) == len(column) for column, name in zip(columns, names, strict=True)):
            return {names: range(len(stored))}
    found = defaultdict[tuple[bytes, ...], list[int]](list)
    for row, fields in enumerate(stored):
        found[tuple(fields[::2])].append(row)
    return dict(found)


def _columns_of(names: Sequence[bytes], stored: Sequence[Sequence[bytes]]) -> pa.Table:
    """All columns but id and arrival of entries with the same names."""
    values = list(zip(*stored, strict=True))[1::2]
    sent = {name.decode("utf-8", "replace"): column for name, column in zip(names, values, strict=True)}
    rows, columns, texts = len(stored), dict[str, pa.Array](), dict[str, pa.Array]()
    for name in _TEXTS:
        columns[name] = _texts(sent[name]) if name in sent else pa.nulls(rows, pa.string())
    for name in _NUMBERS:
        texts[name] = _texts(sent[name]) if name in sent else pa.nulls(rows, pa.string())
        columns[name] = _numbers(texts[name])
    columns[EXTRA] = _extra(
        {name: _decoded(column) for name, column in sent.items() if name not in _COLUMNS},
        {name: texts[name] for name in _NUMBERS if columns[name].null_count > texts[name].null_count},
        columns,
    )
    return pa.table([columns[name] for name in SCHEMA.names[2:]], schema=pa.schema(list(SCHEMA)[2:]))


def _texts(values: Sequence[bytes]) -> pa.Array:
    """UTF-8 as strings; an empty one is null."""
    try:
        found = pa.array(values, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        found = pa.array(_decoded(values), pa.string())
    return pc.if_else(pc.equal(pc.binary_length(found), 0), _NO_TEXT, found)


def _decoded(values: Sequence[bytes]) -> list[str]:
    return [value.decode("utf-8", "replace") for value in values]


def _numbers(texts: pa.Array) -> pa.Array:
    """Finite numbers as float64; null where a text is null or no such number."""
    try:
        found = texts.cast(pa.float64())
    except pa.ArrowInvalid:
        found = pa.array([None if text is None else _number(text) for text in texts.to_pylist()], pa.float64())
    return pc.if_else(pc.is_finite(found), found, _NO_NUMBER)


def _extra(
    rest: Mapping[str, Sequence[str]], unread: Mapping[str, pa.Array], columns: Mapping[str, pa.Array]
) -> pa.Array:
    """As JSON the fields that have no column, and the numbers that cannot be read; null where there are none.

    Args:
        rest: values by name of the fields without a column.
        unread: texts of the numbers, some of which cannot be read, by name.
        columns: those that were made; the numbers that could be read.
    """
    rows = len(columns[USER_ID])
    if not rest and not unread:
        return pa.nulls(rows, pa.string())
    found = [{name: column[row] for name, column in rest.items()} for row in range(rows)]
    for name, texts in unread.items():
        for row, (text, number) in enumerate(zip(texts.to_pylist(), columns[name].to_pylist(), strict=True)):
            if text is not None and number is None:
                found[row][name] = text
    return pa.array(
        [json.dumps(fields, ensure_ascii=False, sort_keys=True) if fields else None for fields in found], pa.string()
    )


def days_of(table: pa.Table) -> list[tuple[int, int]]:
    """For each day of arrival (UTC) its first row and the row after its last one; the rows are in order of arrival."""
    milliseconds = table[ARRIVED].cast(pa.int64()).to_numpy()
    changes = np.flatnonzero(np.diff(np.minimum(milliseconds, LAST_MILLISECOND) // DAY_MS)) + 1
    return list(pairwise((0, *changes.tolist(), len(table))))


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
    # Most texts occur once, and a dictionary of them takes time and space.
    pq.write_table(table, content, compression="zstd", use_dictionary=["type"], write_page_checksum=True)
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
