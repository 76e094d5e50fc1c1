"""Reads one table from a Parquet file, or from a folder of them with or without Hive partitions (``day=…/``)."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.tables.cell_types import narrowest
from training.data.tables.file_kind import foreign_kind
from training.data.tables.mapped_table import LARGE_BYTES, MappedTable
from training.errors import DatasetError

PARQUET: Final = ".parquet"
"""Suffix of the files."""

_BATCH_ROWS: Final = 16_384
_MOST_DIGITS: Final = 38
_NULL_KEY: Final = "__HIVE_DEFAULT_PARTITION__"
_FOREIGN: Final = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, ValueError)


@dataclass(frozen=True)
class _ParquetPart:
    """One file of a table.

    Attributes:
        path: of the file.
        keys: Hive partition → its value as text, None for null.
        schema: columns of the file itself.
    """

    path: Path
    keys: Mapping[str, str | None]
    schema: pl.Schema


@dataclass(frozen=True)
class ParquetTable:
    """One table of one or many Parquet files.

    Attributes:
        path: the file or folder.
        schema: its columns; those of Hive partitions come last.
    """

    path: Path
    schema: pl.Schema
    _parts: Sequence[_ParquetPart]
    _keys: Mapping[str, pl.Series] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the schema of every file.

        The files of a folder follow each other by path. Names that begin with ``_`` or ``.`` are left out, as other
        engines do. A value of a Hive partition becomes a number or bool only without loss, as a cell of a CSV file.

        Args:
            path: a file, or a folder of files that have the same columns.

        Raises:
            DatasetError: a file cannot be read or is none of Parquet, there is none, or two have different columns.
        """
        if not path.is_dir():
            schema = _schema_of(path)
            return cls(path, schema, [_ParquetPart(path, {}, schema)])
        parts = [_opened(file, path) for file in parquet_files(path)]
        schema, keys = _common_schema(parts), _key_columns(path, parts)
        for name, column in keys.items():
            schema[name] = column.dtype
        return cls(path, schema, parts, keys)

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """The rows in order; if they are large, their values stay on disk and are mapped.

        Args:
            columns: of the schema.

        Raises:
            DatasetError: a file cannot be read, a column has more digits than memory holds, or the disk has no room.
        """
        names, size = list(columns), 0.0
        for name in names:
            _check_digits(self.path, name, self.schema[name])
        held = deque[pl.DataFrame]()
        batches = self._batches(names)
        for batch in batches:
            held.append(batch)
            size += batch.estimated_size()  # footers count encoded values, which may be a hundredth of it
            if size > LARGE_BYTES:
                return MappedTable.write(chain(_emptied(held), batches)).frame
        empty = pl.DataFrame(schema={name: _plain(self.schema[name]) for name in names})
        return pl.concat([empty, *held], rechunk=True)

    def _batches(self, names: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The rows in order, some thousand at a time, with the types of the schema."""
        for number, part in enumerate(self._parts):
            with _naming(part.path), pq.ParquetFile(part.path, pre_buffer=False) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=_own(part, names), use_threads=False):
                    batch.validate(full=True)  # neither library checks UTF-8 on this way
                    yield self._unified(pl.DataFrame(pl.from_arrow(batch)), names, number)

    def _unified(self, frame: pl.DataFrame, names: Sequence[str], number: int) -> pl.DataFrame:
        """The columns in order, with the types of the schema and the partition's values."""
        values = [pl.lit(column[number], column.dtype).alias(name) for name, column in self._keys.items()]
        return frame.with_columns(values).select(pl.col(name).cast(_plain(self.schema[name])) for name in names)


def _schema_of(path: Path, *, hive_partitioning: bool | None = None) -> pl.Schema:
    """The columns of a file.

    Raises:
        DatasetError: two have one name.
        PolarsError: it cannot be read.
    """
    try:
        return pl.scan_parquet(path, glob=False, hive_partitioning=hive_partitioning).collect_schema()
    except pl.exceptions.DuplicateError as error:
        names = pq.read_schema(path).names
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"{path}: column {twice!r} appears more than once; rename or drop one") from error


def _check_digits(path: Path, name: str, dtype: pl.DataType) -> None:
    """Refuse decimals of 256 bits, on which the conversion to polars panics."""
    inner: object = dtype
    while isinstance(inner, pl.List | pl.Array):
        inner = inner.inner
    if isinstance(inner, pl.Decimal) and inner.precision > _MOST_DIGITS:
        raise DatasetError(
            f"{path}: column {name!r} holds decimals of {inner.precision} digits, at most {_MOST_DIGITS} are read; "
            "write it with fewer, or as floats"
        )


def _emptied(held: deque[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The frames in order, each of which is released once the next is asked for."""
    while held:
        yield held.popleft()


def _plain(dtype: pl.DataType) -> pl.DataType:
    """The type that a column has in memory: the codes of categories differ between files."""
    return pl.String() if isinstance(dtype, pl.Categorical | pl.Enum) else dtype


def _own(part: _ParquetPart, names: Sequence[str]) -> list[str]:
    """Columns to read from a file; at least one, whose number of values is that of the rows."""
    return [name for name in names if name in part.schema] or part.schema.names()[:1]


def is_left_out(parts: Sequence[str]) -> bool:
    """Whether a name below the folder of a table begins with ``_`` or ``.``, or lies in a folder whose name does."""
    return any(part.startswith(("_", ".")) for part in parts)


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files below a folder by path.

    Raises:
        DatasetError: there is none, or another file.
    """
    found = []
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts):
        if is_left_out(path.relative_to(folder).parts) or path.is_dir():
            continue
        if path.suffix.lower() != PARQUET:
            raise DatasetError(
                f"{path}: the folder of a table holds {PARQUET} files only; remove it, or convert it to Parquet"
            )
        found.append(path)
    if not found:
        raise DatasetError(f"{folder}: a folder of a table needs at least one {PARQUET} file, got none")
    return found


def _opened(path: Path, folder: Path) -> _ParquetPart:
    with _naming(path):
        kind = foreign_kind(path)
        if kind is not None:
            raise DatasetError(f"{path}: {kind}")
        schema = _schema_of(path, hive_partitioning=False)
    keys: dict[str, str | None] = {}
    for part in path.relative_to(folder).parts[:-1]:
        name, mark, value = part.partition("=")
        if mark:
            keys[unquote(name)] = None if value == _NULL_KEY else unquote(value)
    both = sorted(keys.keys() & schema.keys())
    if both:
        raise DatasetError(
            f"{path}: column {both[0]!r} is in the file and in the name of its folder; leave it out of one of them"
        )
    return _ParquetPart(path, keys, schema)


def _common_schema(parts: Sequence[_ParquetPart]) -> pl.Schema:
    """The columns of all files; a column of nulls alone takes the type that the other files give it.

    Raises:
        DatasetError: two files have different columns or types.
    """
    first = parts[0]
    types: dict[str, tuple[pl.DataType, Path]] = {}
    for part in parts:
        for name in sorted(first.schema.keys() ^ part.schema.keys()):
            here, there = (part, first) if name in part.schema else (first, part)
            raise DatasetError(
                f"{there.path}: column {name!r} is missing, which {here.path} has; write all files of a table with the "
                "same columns"
            )
        for name, dtype in part.schema.items():
            plain = _plain(dtype)
            known, place = types.get(name, (pl.Null(), part.path))
            if known == pl.Null():
                types[name] = plain, part.path
            elif plain not in (known, pl.Null()):
                raise DatasetError(
                    f"{part.path}: column {name!r} holds {plain}, in {place} it holds {known}; write all files of a "
                    "table with the same types"
                )
    return pl.Schema({name: dtype for name, (dtype, _) in types.items()})


def _key_columns(folder: Path, parts: Sequence[_ParquetPart]) -> dict[str, pl.Series]:
    """Hive partition → its value in every file.

    Raises:
        DatasetError: two files have different partitions.
    """
    names = list(parts[0].keys)
    for part in parts:
        if list(part.keys) != names:
            raise DatasetError(
                f"{part.path}: lies in the partitions {list(part.keys)}, {parts[0].path} in {names}; give all files of "
                f"{folder} the same partitions"
            )
    return {name: narrowest(pl.Series(name, [part.keys[name] for part in parts], pl.String)) for name in names}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of a file name it, where a table has several.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: was removed while it was being read; start again") from error
    except (OSError, *_FOREIGN) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DatasetError(
                f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
            ) from error
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DatasetError(f"{path}: is not a readable parquet file ({detail}); fetch or export it again") from error
