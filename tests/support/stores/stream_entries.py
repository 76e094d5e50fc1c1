"""Entries of an event stream as Redis sends them."""

from collections.abc import Mapping

from index.event_export.stream_ids import Entry, StreamId


def stream_entry(milliseconds: int, sequence: int, fields: Mapping[str, str]) -> Entry:
    """An entry with these fields in their order."""
    texts = [text.encode() for pair in fields.items() for text in pair]
    return str(StreamId(milliseconds, sequence)).encode(), texts
