"""Table files of a dataset directory: CSV, JSON Lines and Parquet, read into polars with clear errors.

Every foreign error (polars, the file system, decoding) becomes a :class:`DatasetError` that names the file, the place
and what to do.
"""

import codecs
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from training.errors import DatasetError

ROW = "#row"
"""Column of record numbers that :func:`read_table` adds; a CSV header does not count."""

_BOOL = r"^(?i:true|false)$"
_INTEGER = r"^(0|-?[1-9]\d{0,17})$"
_FLOAT = r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d{1,2})?$"
_FOREIGN = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, csv.Error)


def find_table(directory: Path, stem: str, suffixes: Sequence[str]) -> Path:
    """The one file ``stem.suffix`` of a dataset directory.

    Args:
        directory: the dataset directory.
        stem: ``items`` or ``interactions``.
        suffixes: allowed suffixes without the dot.

    Raises:
        DatasetError: the directory is missing, or holds none or several of the files.
    """
    try:
        if not directory.is_dir():
            raise DatasetError(f"{directory}: a dataset is a directory, but there is none at this path")
        found = [path for suffix in suffixes if (path := directory / f"{stem}.{suffix}").exists()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{directory}: cannot be opened ({error}); check the path and its permissions") from error
    names = " or ".join(f"{stem}.{suffix}" for suffix in suffixes)
    if not found:
        raise DatasetError(f"{directory}: a dataset needs {names}, found neither; see docs/dataset.md")
    if len(found) > 1:
        raise DatasetError(f"{directory}: found {' and '.join(path.name for path in found)}; keep one of them")
    return found[0]


def read_table(
    path: Path, *, text: Sequence[str], required: Sequence[str], columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """Read one table file in file order.

    Args:
        path: a ``.csv`` (UTF-8, a byte-order mark is accepted, RFC 4180 quoting), ``.jsonl`` or ``.parquet`` file.
        text: columns read as strings whatever they hold, so that ``007`` stays ``007``.
        required: columns that the file must have.
        columns: columns to read, those that the file lacks are left out; None reads all.

    Returns:
        The file's columns and :data:`ROW` (uint32, the first record is row 1). The other columns of a CSV file become
        bools (``true``, ``false``), integers or floats if every value is one and loses nothing by it (``007`` is none),
        else strings; an empty cell is null. Blank lines of a CSV file are left out.

    Raises:
        DatasetError: the file is missing, a directory, empty, not readable as its suffix says, not UTF-8, or lacks a
            required column.
    """
    try:
        if not path.is_file():
            raise DatasetError(f"{path}: {'must be a file, not a directory' if path.is_dir() else 'no such file'}")
        scan = _scan(path)
        present = scan.collect_schema().names()
        _require_columns(path, present, required)
        if columns is not None:
            scan = scan.select([name for name in columns if name in present])
        frame = _text_columns(path, scan.collect(engine="streaming"), text).with_row_index(ROW, offset=1)
    except _FOREIGN as error:
        raise DatasetError(f"{path}: {_reason(path, error)}") from error
    if path.suffix.lower() != ".csv":
        return frame
    frame = frame.filter(~pl.all_horizontal(pl.exclude(ROW).is_null()))
    return frame.with_columns([_narrowest(frame[name]) for name in frame.columns if name not in (*text, ROW)])


def _require_columns(path: Path, present: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in present]
    if missing:
        raise DatasetError(
            f"{path}: column {missing[0]!r} is missing, found {', '.join(map(repr, present))}; names are "
            "case-sensitive and a CSV separates columns by commas"
        )
    if ROW in present:
        raise DatasetError(f"{path}: a column must not be called {ROW!r}; rename it")


def rows_named(rows: pl.Series, *, limit: int = 3) -> str:
    """Row numbers for a message: ``row 4`` or ``rows 4, 9, 12 and 5 more``.

    Args:
        rows: numbers from :data:`ROW`, at least one.
        limit: how many to name.
    """
    named = ", ".join(str(row) for row in rows.head(limit).to_list())
    more = f" and {len(rows) - limit:,} more" if len(rows) > limit else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {named}{more}"


def _scan(path: Path) -> pl.LazyFrame:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        _check_csv_header(path)
        return pl.scan_csv(path, infer_schema=False, glob=False)
    if suffix == ".jsonl":
        return _scan_jsonl(path)
    if suffix == ".parquet":
        return pl.scan_parquet(path, glob=False)
    raise DatasetError(f"{path}: a table is a .csv, .jsonl or .parquet file, got the suffix {path.suffix!r}")


def _check_csv_header(path: Path) -> None:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        names = next(csv.reader(lines), [])
    if not names:
        raise DatasetError(f"{path}: the file is empty; the first line must name the columns")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DatasetError(f"{path}: column {repeated!r} appears more than once in the header; rename or drop one")


def _narrowest(column: pl.Series) -> pl.Series:
    values = column.str.strip_chars().drop_nulls().replace("", None).drop_nulls()
    if not len(values):
        return column
    spelled = pl.select(pl.when(column.str.strip_chars() != "").then(column.str.strip_chars())).to_series()
    if values.str.contains(_BOOL).all():
        return (spelled.str.to_lowercase() == "true").rename(column.name)
    if values.str.contains(_INTEGER).all():
        return spelled.cast(pl.Int64).rename(column.name)
    if values.str.contains(_FLOAT).all():
        return spelled.cast(pl.Float64).rename(column.name)
    return column


def _scan_jsonl(path: Path) -> pl.LazyFrame:
    with path.open("rb") as stream:
        marked = stream.read(3) == codecs.BOM_UTF8
    if path.stat().st_size == 3 * marked:
        raise DatasetError(f"{path}: the file is empty; each line must be one JSON object")
    with path.open("rb") as stream:
        stream.seek(3 if marked else 0)
        return pl.read_ndjson(stream, infer_schema_length=None).lazy()


def _text_columns(path: Path, frame: pl.DataFrame, text: Sequence[str]) -> pl.DataFrame:
    """Cast the text columns to strings; integers, categories and dates have one spelling, anything else is refused."""
    casts = []
    for name in text:
        dtype = frame.schema.get(name)
        if dtype is None or dtype == pl.String:
            continue
        if not (dtype.is_integer() or dtype in (pl.Categorical, pl.Enum, pl.Null)):
            raise DatasetError(f"{path}: column {name!r} must hold strings or whole numbers, it holds {dtype}")
        casts.append(pl.col(name).cast(pl.String))
    return frame.with_columns(casts)


def _reason(path: Path, error: BaseException) -> str:
    """What is wrong with a file that could not be read, for a person."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error}); check the path and its permissions"
    if path.suffix.lower() in (".csv", ".jsonl"):
        line = _first_line_not_utf8(path)
        if line is not None:
            return f"must be UTF-8, line {line} is not; convert it, for example with iconv -f LATIN1 -t UTF-8"
    if path.suffix.lower() == ".jsonl":
        line = _first_line_not_an_object(path)
        if line is not None:
            return f"each line must be one JSON object, line {line} is not"
    detail = str(error).strip().splitlines()
    return f"is not a readable {path.suffix[1:]} file ({detail[0] if detail else type(error).__name__})"


def _first_line_not_utf8(path: Path) -> int | None:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return None


def _first_line_not_an_object(path: Path) -> int | None:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return number
            except (ValueError, RecursionError):
                return number
    return None
