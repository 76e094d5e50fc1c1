"""Stream entries become the same rows as by reading one entry after another."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import EventExportError
from index.event_export.rows import SCHEMA, days_of, table_of
from index.event_export.stream_ids import Entry, StreamId
from tests.support.stores.stream_entries import stream_entry

TEXTS = ("user_id", "item_id", "type", "event_id", "request_id", "session_id")
NUMBERS = ("timestamp", "value")
NAMES = [name.encode() for name in (*TEXTS, *NUMBERS, "extra", "stream_id", "merged_into", "arm", "ä")]
values = st.one_of(
    st.binary(max_size=6),
    st.text(max_size=4).map(str.encode),
    st.floats().map(lambda number: repr(number).encode()),
    st.sampled_from([b"", b" 1", b"1_0", b"1e400", b"-0", b"0x10", b"+5", b"nan", b"Infinity", b"1.", b".5", b"\xff"]),
)
fields = st.lists(st.tuples(st.sampled_from([*NAMES, b"\xff"]), values), max_size=9)
number = st.one_of(st.integers(0, 2_000_000_000_000), st.integers(0, 2**64 - 1))


def read(sent: Mapping[str, str]) -> dict[str, Any]:
    """The columns of one entry but for its id."""
    row: dict[str, Any] = {name: sent.get(name) or None for name in TEXTS}
    rest = {name: text for name, text in sent.items() if name not in TEXTS + NUMBERS}
    for name in NUMBERS:
        row[name] = None
        if text := sent.get(name):
            with suppress(ValueError):
                row[name] = float(text) if math.isfinite(float(text)) else None
            if row[name] is None:
                rest[name] = text
    return row | {"extra": json.dumps(rest, ensure_ascii=False, sort_keys=True) if rest else None}


def expected(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    rows = []
    for entry_id, parts in entries:
        texts = [part.decode("utf-8", "replace") for part in parts]
        milliseconds = min(StreamId.parse(entry_id.decode()).milliseconds, 2**63 - 1)
        row = {"stream_id": entry_id.decode(), "arrived": milliseconds}
        rows.append(row | read(dict(zip(texts[::2], texts[1::2], strict=True))))
    return rows


@given(st.lists(st.tuples(number, number, fields), min_size=1, max_size=12))
def test_rows_are_those_of_each_entry(made: list[tuple[int, int, list[tuple[bytes, bytes]]]]) -> None:
    entries = [
        (f"{milliseconds}-{sequence}".encode(), [part for pair in pairs for part in pair])
        for milliseconds, sequence, pairs in made
    ]
    table = table_of(entries)
    assert table.schema == SCHEMA
    table.validate(full=True)
    arrived = table.set_column(1, "arrived", table["arrived"].cast(pa.int64()))
    assert arrived.to_pylist() == expected(entries)


def test_entries_of_one_shape_and_of_many_have_the_same_rows() -> None:
    plain = stream_entry(1_790_000_000_000, 0, {"user_id": "anna", "item_id": "a", "timestamp": "1.5", "value": "2"})
    other = stream_entry(1_790_000_000_000, 1, {"user_id": "bob", "item_id": "b", "arm": "prices/low"})
    rows = table_of([plain, plain]).to_pylist()
    assert table_of([plain, other, plain]).to_pylist()[::2] == rows
    assert table_of([plain, other, plain]).to_pylist()[1]["extra"] == '{"arm": "prices/low"}'


def test_an_id_that_is_none_is_refused() -> None:
    with pytest.raises(EventExportError, match="must be two numbers as in 1790000000123-0, got 'first'"):
        table_of([(b"first", [b"user_id", b"anna"])])


def test_days_begin_at_midnight_in_utc() -> None:
    midnight = 1_790_035_200_000 // 86_400_000 * 86_400_000
    times = [midnight - 1, midnight, midnight + 86_399_999, midnight + 86_400_000, 2**64 - 2, 2**64 - 1]
    table = table_of([stream_entry(at, 0, {"user_id": "anna"}) for at in times])
    assert days_of(table) == [(0, 1), (1, 3), (3, 4), (4, 6)]
    assert days_of(table.slice(1, 2)) == [(0, 2)]
