"""Reads text tables, separated or CSV, into polars in batches with the line number of every row."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from training.errors import DatasetError
from training.imports.source_files import LONGEST_RECORD_BYTES, Source, decode, lines_of

LINE = "#line"
"""Column of line numbers, from 1, that every batch of an import has."""
_FIELDS = "#fields"
_OPEN_QUOTE = "unexpected end of data"


def read_lines(source: Source, path: Path, encoding: str = "utf-8") -> Iterator[pl.DataFrame]:
    """Lines of a file.

    Returns:
        Batches with :data:`LINE` (Int64) and ``text``; empty lines are left out.

    Raises:
        DatasetError: the file cannot be read.
    """
    for block in source.blocks(path):
        yield numbered_lines(decode(path, block, encoding), block.first_line)


def numbered_lines(text: str, first: int) -> pl.DataFrame:
    """Lines of a text that are not empty, as :func:`read_lines` yields them; ``first`` is the first line's number."""
    lines = pl.DataFrame({"text": lines_of(text)}, schema={"text": pl.String})
    return lines.with_row_index(LINE, offset=first).cast({LINE: pl.Int64}).filter(pl.col("text") != "")


def read_fields(source: Source, path: Path, separator: str, names: Sequence[str]) -> Iterator[pl.DataFrame]:
    """A file of fields between separators, without header and quoting.

    Args:
        source: where ``path`` is.
        path: the file.
        separator: one or more characters.
        names: of the columns.

    Returns:
        Batches with :data:`LINE` and the named columns as strings.

    Raises:
        DatasetError: the file cannot be read, or a line has too few or too many fields.
    """
    for batch in read_lines(source, path):
        yield split_fields(path, batch, separator, names)


def split_fields(path: Path, lines: pl.DataFrame, separator: str, names: Sequence[str]) -> pl.DataFrame:
    """Split lines into columns; arguments, result and errors are those of :func:`read_fields`."""
    split = lines.select(LINE, pl.col("text").str.split(separator).alias(_FIELDS))
    wrong = split.filter(pl.col(_FIELDS).list.len() != len(names))
    if wrong.height:
        raise wrong_count(path, wrong[LINE][0], len(wrong[_FIELDS][0]), len(names), repr(separator))
    return split.select(LINE, *(pl.col(_FIELDS).list.get(position).alias(name) for position, name in enumerate(names)))


def wrong_count(path: Path, line: int, got: int, expected: int, separator: str) -> DatasetError:
    """The error of a row with too few or too many fields."""
    return DatasetError(
        f"{path}: line {line:,} has {got} fields between {separator}, it must have {expected}; correct or remove the "
        "line, and check that the file is complete"
    )


class CsvFile:
    """A CSV file with a header as RFC 4180 defines it: UTF-8, fields in double quotes may hold line breaks.

    A row with too few or too many fields is an error that names its line. :mod:`training.data.tables.csv_records`
    cannot replace this class: it checks files that polars then reads whole, so it needs twice the memory and knows no
    line of a row after a field with a line break; it reads neither gzip nor other separators. The price is speed on
    such fields: 7.8 s instead of 3.3 s for 400,000 rows in 75 MiB; without quotes both take 1.6 s.

    Args:
        source: where ``path`` is.
        path: the file.
        separator: one character.
    """

    def __init__(self, source: Source, path: Path, separator: str = ",") -> None:
        self._source = source
        self._path = path
        self._separator = separator
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_RECORD_BYTES))

    def batches(self) -> Iterator[pl.DataFrame]:
        """Rows in batches, with :data:`LINE` (where a row begins) and every column of the header as strings; an empty
        field is null.

        Raises:
            DatasetError: the file cannot be read, has no header, or a line breaks the rules above or has another number
                of fields than the header.
        """
        names: list[str] | None = None
        carry: list[str] = []
        first = 1
        for block in self._source.blocks(self._path):
            text = decode(self._path, block)
            if names is not None and not carry and '"' not in text:
                yield self._unquoted(names, text, first)
                first += block.content.count(b"\n")
                continue
            lines = [*carry, *_with_ends(text)]
            numbers, records, used = self._parse(lines, first, last=False)
            carry, first = lines[used:], first + used
            if sum(map(len, carry)) > LONGEST_RECORD_BYTES:
                raise self._unclosed(first)
            if names is None and records:
                names, numbers, records = self._header(records[0]), numbers[1:], records[1:]
            if names is not None:
                yield self._frame(names, numbers, records)
        numbers, records, _ = self._parse(carry, first, last=True)
        if names is None:
            names = self._header(records[0] if records else [])
            numbers, records = numbers[1:], records[1:]
        yield self._frame(names, numbers, records)

    def _header(self, fields: list[str]) -> list[str]:
        names = [name.strip() for name in fields]
        if not any(names):
            raise DatasetError(f"{self._path}: the first line must name the columns, it is empty")
        repeated = next((name for name in names if name == LINE or (name and names.count(name) > 1)), None)
        if repeated is not None:
            raise DatasetError(f"{self._path}: line 1: column {repeated!r} appears more than once; rename or drop one")
        return [name or f"#column {position}" for position, name in enumerate(names)]

    def _unquoted(self, names: list[str], text: str, first: int) -> pl.DataFrame:
        """Rows of lines without a quote, which polars splits many times faster than the CSV module."""
        lines = numbered_lines(text, first)
        return split_fields(self._path, lines, self._separator, names).with_columns(_nulls(names))

    def _frame(self, names: list[str], numbers: list[int], records: list[list[str]]) -> pl.DataFrame:
        filled = [(number, record) for number, record in zip(numbers, records, strict=True) if record]
        for number, record in filled:
            if len(record) != len(names):
                raise wrong_count(self._path, number, len(record), len(names), repr(self._separator))
        schema = {LINE: pl.Int64, **dict.fromkeys(names, pl.String)}
        rows = [(number, *record) for number, record in filled]
        return pl.DataFrame(rows, schema=schema, orient="row").with_columns(_nulls(names))

    def _parse(self, text: list[str], first: int, *, last: bool) -> tuple[list[int], list[list[str]], int]:
        """Whole records at the start of some lines, and how many lines they take."""
        reader = csv.reader(text, delimiter=self._separator, strict=True)
        lines: list[int] = []
        records: list[list[str]] = []
        used = 0
        try:
            for record in reader:
                lines.append(first + used)
                records.append(record)
                used = reader.line_num
        except csv.Error as error:
            if str(error) == _OPEN_QUOTE and not last:
                return lines, records, used
            if str(error) == _OPEN_QUOTE or "field limit" in str(error):
                raise self._unclosed(first + used) from error
            raise DatasetError(
                f"{self._path}: line {first + used:,} is no CSV line ({error}); double a quote inside a quoted field, "
                "end lines with LF or CRLF, or export the file again with RFC 4180 quoting"
            ) from error
        return lines, records, used

    def _unclosed(self, line: int) -> DatasetError:
        return DatasetError(
            f"{self._path}: line {line:,}: a quoted field is opened and not closed; double or remove the stray quote, "
            "or export the file again with RFC 4180 quoting"
        )


def _with_ends(text: str) -> list[str]:
    lines = text.split("\n")
    ended = [f"{line}\n" for line in lines[:-1]]
    return [*ended, lines[-1]] if lines[-1] else ended


def _nulls(names: Sequence[str]) -> list[pl.Expr]:
    return [pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in names]
