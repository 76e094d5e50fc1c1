"""Reads the tables ``items`` and ``interactions`` written by Postgres' COPY, in CSV or text format with a header."""

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from index.items.item_table import ITEM_ID, POPULARITY
from training.data.dataset import IMAGE, INTERACTIONS, ITEMS, TIMESTAMP, USER_ID
from training.data.event_weights import DECIDING_COLUMNS
from training.data.timestamps import TIME_RULE, read_timestamps
from training.errors import DatasetError
from training.imports.delimited import LINE, CsvFile, read_lines, split_fields
from training.imports.import_record import ImportRecord
from training.imports.source_files import Source
from training.imports.source_format import SOURCE_IMAGE, TIME, Batch

_SUFFIXES = ("csv", "tsv", "txt", "copy")
_NULL = r"\N"
_END = r"\."
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_BYTES = re.compile(r"\\(x[0-9a-fA-F]|[0-7])")
_LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class Postgres:
    r"""Tables written by Postgres' COPY.

    Text format (``.tsv``, ``.txt``, ``.copy``): tabs, ``\N`` for null, backslash escapes. CSV: RFC 4180 with an empty
    field or ``\N`` for null.
    """

    items_suffix = "csv"
    time_rule = TIME_RULE
    has_interactions = True
    one_file = False

    def items(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """All columns under their names; ``image`` is a path relative to the source, and the picture is copied."""
        del record
        path = _table(source, ITEMS)
        for rows in _rows(source, path):
            _require(path, rows, [ITEM_ID])
            if POPULARITY in rows.columns:
                raise DatasetError(f"{path}: line 1: {POPULARITY!r} is reserved; SELECT it AS another name")
            yield Batch(path.name, rows.rename({IMAGE: SOURCE_IMAGE}, strict=False))

    def interactions(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """``user_id``, ``item_id``, ``timestamp``, and what decides their meaning; times have one unit in the file."""
        del record
        path = _table(source, INTERACTIONS)
        read = []
        for rows in _rows(source, path):
            _require(path, rows, [USER_ID, ITEM_ID, TIMESTAMP])
            deciding = [name for name in DECIDING_COLUMNS if name in rows.columns]
            read.append(rows.select(LINE, USER_ID, ITEM_ID, TIMESTAMP, *deciding))
        events = pl.concat(read)
        times = read_timestamps(events[TIMESTAMP]).microseconds.alias(TIME)
        yield Batch(path.name, events.drop(TIMESTAMP).with_columns(times))


def _table(source: Source, name: str) -> Path:
    return source.one(f"the table {name}", *(f"{name}.{suffix}" for suffix in _SUFFIXES))


def _require(path: Path, rows: pl.DataFrame, names: list[str]) -> None:
    missing = next((name for name in names if name not in rows.columns), None)
    if missing is not None:
        found = ", ".join(repr(name[:40]) for name in rows.columns[1:9])
        raise DatasetError(
            f"{path}: line 1 must name the columns and has no {missing!r}, found {found}; COPY with HEADER, and name "
            f"the columns in the SELECT (… AS {missing})"
        )


def _rows(source: Source, path: Path) -> Iterator[pl.DataFrame]:
    if path.name.removesuffix(".gz").endswith(".csv"):
        for rows in CsvFile(source, path).batches():
            null = [pl.when(pl.col(name) != _NULL).then(pl.col(name)).alias(name) for name in rows.columns[1:]]
            yield rows.with_columns(null)
        return
    names: list[str] | None = None
    for lines in read_lines(source, path):
        if lines.is_empty():
            continue
        if names is None:
            names = lines["text"][0].split("\t")
            _distinct(path, names)
            lines = lines[1:]  # noqa: PLW2901 - the header is no row
        ended = lines["text"].index_of(_END)
        yield _unescaped(path, split_fields(path, lines if ended is None else lines[:ended], "\t", names))
        if ended is not None:
            return
    if names is None:
        raise DatasetError(f"{path}: the file is empty; COPY with HEADER, so that the first line names the columns")


def _distinct(path: Path, names: list[str]) -> None:
    repeated = next((name for name in names if name in (LINE, TIME) or names.count(name) > 1), None)
    if repeated is not None:
        raise DatasetError(f"{path}: line 1: column {repeated!r} is there twice; SELECT it AS another name")


def _unescaped(path: Path, rows: pl.DataFrame) -> pl.DataFrame:
    columns = []
    for column in rows.iter_columns():
        if column.name == LINE or not column.str.contains("\\", literal=True).any():
            columns.append(column)
            continue
        values = column.to_list()
        strange = next(
            (position for position, value in enumerate(values) if _BYTES.search(value.replace(r"\\", ""))), None
        )
        if strange is not None:
            raise DatasetError(
                f"{path}: line {rows[LINE][strange]:,}: an escape of a byte by its number, which COPY TO never writes; "
                "write the character itself in UTF-8"
            )
        plain = [None if value == _NULL else _ESCAPE.sub(_unescape, value) for value in values]
        columns.append(pl.Series(column.name, plain, dtype=pl.String))
    return pl.DataFrame(columns)


def _unescape(found: re.Match[str]) -> str:
    return _LETTERS.get(found[1], found[1])
