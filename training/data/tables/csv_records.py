"""Checks that every record of a CSV file has the header's number of fields and correct quotes.

Polars fills a short record with nulls and drops misplaced quotes without an error, so every file is checked first.
Three checks follow each other, from fast to slow: polars' threads look for lines that are not a whole record; the
standard library reads a file with such lines; a reader that knows line numbers and remedies reads what fails.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import polars as pl

from training.errors import DatasetError

MAX_LINE_BYTES = 2**24
"""Longest permitted line; it bounds the memory for a malicious file."""
_MOST_COLUMNS = 100  # of the regular expression for whole lines; a wider table is read in order
_NO_SEPARATOR = "\x1f"  # a line with it is read in order too
_SHOWN_BYTES = 60

_FIELD = '(?:"(?:[^"]|"")*"|[^",]*)'
_QUOTED_REST = re.compile(rb'[^"]*+(?:""[^"]*+)*+"')
_PLAIN = re.compile(rb"[^,\n]*+")
_END = re.compile(rb"\r?\n?")
_WHOLE = rb'(?:"[^"]*+(?:""[^"]*+)*+"|[^",\n]*+)'

_DOUBLE = 'put the field in quotes and write each quote in it twice: "5"" screen"'


@dataclass
class _Record:
    """The record that is being read.

    Attributes:
        line: where it begins.
        fields: number of complete fields.
        stray: quotes inside unquoted fields.
        opened: line in which the current quoted field began; 0 outside a quoted field.
    """

    line: int
    fields: int = 0
    stray: int = 0
    opened: int = 0


def check_records(path: Path, columns: int) -> None:
    """Check every record of a CSV file against RFC 4180 and the number of fields of the header.

    A blank line is no record. Quotes inside an unquoted field are literal if a record has an even number of them, as in
    polars.

    Args:
        path: UTF-8, with or without a byte-order mark.
        columns: fields of the header.

    Raises:
        DatasetError: a record has another number of fields, a quote is misplaced, a quoted field is never closed, or a
            line is longer than :data:`MAX_LINE_BYTES`; the message names the line and a remedy.
        OSError: the file cannot be read.
    """
    if _every_line_is_a_record(path, columns) or _every_record_is_good(path, columns):
        return
    fault = first_fault(path, columns)
    if fault is not None:
        raise DatasetError(f"{path}: {fault}")


def _every_line_is_a_record(path: Path, columns: int) -> bool:
    """The fastest check, in polars' threads; false for valid records over several lines, too."""
    if columns > _MOST_COLUMNS:
        return False
    pattern = f"^{_FIELD}(?:,{_FIELD}){{{columns - 1}}}$"
    lines = pl.scan_csv(
        path, has_header=False, separator=_NO_SEPARATOR, quote_char=None, schema={"line": pl.String}, glob=False
    )
    others = lines.filter((pl.col("line") != "") & ~pl.col("line").str.contains(pattern))
    try:
        return others.head(1).collect(engine="streaming").is_empty()
    except pl.exceptions.PolarsError:  # the separator, or bytes that are no UTF-8
        return False


def _every_record_is_good(path: Path, columns: int) -> bool:
    """A faster check than :func:`first_fault` of a file with records over several lines; false if in doubt."""
    quotes = 0

    def counted(lines: Iterable[str]) -> Iterator[str]:
        nonlocal quotes
        for line in lines:
            quotes += line.count('"')
            yield line

    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            for record in csv.reader(counted(lines), strict=True):
                # A record with an odd number of quotes has one in a field without quotes around it.
                if quotes % 2 or (len(record) != columns and record):
                    return False
    except (csv.Error, UnicodeDecodeError):  # a field of more than csv.field_size_limit() characters, too
        return False
    return True


def first_fault(path: Path, columns: int) -> str | None:
    """The fault of the first invalid record, with line and remedy; None if every record is valid.

    Args:
        path: the file.
        columns: fields of the header.

    Raises:
        OSError: the file cannot be read.
    """
    whole = re.compile(_WHOLE + rb"(?:," + _WHOLE + rb"){%d}\r?\n?" % (columns - 1))
    record: _Record | None = None
    with path.open("rb") as stream:
        for number, line, last in _lines(stream):
            if len(line) >= MAX_LINE_BYTES:
                return f"line {number} has more than {MAX_LINE_BYTES // 2**20} MiB; a line must be shorter"
            if record is None:
                if line in (b"\n", b"\r\n") or whole.fullmatch(line):
                    continue
                record = _Record(number)
            fault = _read_line(record, number, line)
            if fault is not None:
                return fault
            if not record.opened:
                fault = _fault_of_whole(record, line, columns, last=last)
                if fault is not None:
                    return fault
                record = None
    if record is None:
        return None
    return (
        f"line {record.opened}: a quoted field begins here and is never closed; close it, or if the quote is part of "
        f"the text, {_DOUBLE}; if the file was cut, fetch it again"
    )


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """Number from 1, content without byte-order mark, and whether the line lacks a line break."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES):
        number += 1
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, not line.endswith(b"\n")


def _read_line(record: _Record, number: int, line: bytes) -> str | None:
    """Read the next line of a record; the fault, if the line has one."""
    place, size = 0, len(line)
    while True:
        if record.opened or line[place : place + 1] == b'"':
            place += not record.opened
            record.opened = record.opened or number
            closed = _QUOTED_REST.match(line, place)
            if closed is None:
                return None  # the field continues in the next line
            began, record.opened, place = record.opened, 0, closed.end()
        else:
            began, plain = 0, _PLAIN.match(line, place)
            if plain is not None:
                record.stray += plain[0].count(b'"')
                place = plain.end()
        record.fields += 1
        if line[place : place + 1] == b",":
            place += 1
            continue
        ending = _END.match(line, place)
        if ending is not None and ending.end() == size:
            return None
        lines = f"line {number}" if began == number else f"lines {began} to {number}"
        return f"{lines}: a quoted field ends and then goes on with {_shown(line[place:])}; {_DOUBLE}"


def _fault_of_whole(record: _Record, line: bytes, columns: int, *, last: bool) -> str | None:
    """The fault of a complete record, if it has one."""
    if record.stray % 2:
        return f"line {record.line}: a field without quotes around it has a quote in it; {_DOUBLE}"
    if record.fields == columns:
        return None
    has = f"line {record.line} has {record.fields} field{'s' * (record.fields != 1)}, the header has {columns}"
    if record.fields > columns:
        return f"{has}; put a field that has a comma in it in quotes, or correct the row: {_shown(line)}"
    if last:
        return f"{has}; it is the last line and seems cut: fetch the file again, or complete the row: {_shown(line)}"
    return f"{has}; complete the row, an empty field needs its comma too: {_shown(line)}"


def _shown(content: bytes) -> str:
    """The beginning of a line for a message."""
    text = content[:_SHOWN_BYTES].decode("utf-8", "replace").rstrip("\r\n")
    return repr(text) + ("…" if len(content) > _SHOWN_BYTES else "")
