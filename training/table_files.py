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
    if not directory.is_dir():
        raise DatasetError(f"{directory}: a dataset is a directory, but there is none at this path")
    found = [path for suffix in suffixes if (path := directory / f"{stem}.{suffix}").exists()]
    names = " or ".join(f"{stem}.{suffix}" for suffix in suffixes)
    if not found:
        raise DatasetError(f"{directory}: a dataset needs {names}, found neither; see docs/dataset.md")
    if len(found) > 1:
        raise DatasetError(f"{directory}: found {' and '.join(path.name for path in found)}; keep one of them")
    return found[0]


def read_table(path: Path, *, text: Sequence[str], columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read one table file in file order.

    Args:
        path: a ``.csv`` (UTF-8, a byte-order mark is accepted, RFC 4180 quoting), ``.jsonl`` or ``.parquet`` file.
        text: columns read as strings whatever they hold, so that ``007`` stays ``007``.
        columns: columns to read, those that the file lacks are left out; None reads all.

    Returns:
        The rows with the file's columns. Other CSV columns get the narrowest of bool, int, float and string that holds
        every value. A record without any value keeps its row.

    Raises:
        DatasetError: the file is missing, a directory, empty, not readable as its suffix says, or not UTF-8.
    """
    if path.is_dir():
        raise DatasetError(f"{path}: a table must be a file, this is a directory")
    if not path.exists():
        raise DatasetError(f"{path}: no such file")
    try:
        scan = _scan(path, text)
        present = scan.collect_schema().names()
        if columns is not None:
            scan = scan.select([name for name in columns if name in present])
        return _text_columns(path, scan.collect(engine="streaming"), text)
    except _FOREIGN as error:
        raise DatasetError(f"{path}: {_reason(path, error)}") from error


def require_columns(path: Path, frame: pl.DataFrame, names: Sequence[str]) -> None:
    """Hold a table to its required columns.

    Raises:
        DatasetError: a column is missing.
    """
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise DatasetError(
            f"{path}: column {missing[0]!r} is missing, found {', '.join(map(repr, frame.columns)) or 'none'}; "
            "names are case-sensitive and a CSV separates columns by commas"
        )


def rows_named(rows: pl.Series, *, limit: int = 3) -> str:
    """Row numbers for a message: ``row 4`` or ``rows 4, 9, 12 and 5 more``.

    Args:
        rows: 0-based positions. The first record after a CSV header is row 1.
        limit: how many to name.
    """
    named = ", ".join(str(row + 1) for row in rows.head(limit).to_list())
    more = f" and {len(rows) - limit:,} more" if len(rows) > limit else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {named}{more}"


def _scan(path: Path, text: Sequence[str]) -> pl.LazyFrame:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        names = _csv_header(path)
        strings = {name: pl.String for name in names if name in text}
        return pl.scan_csv(path, schema_overrides=strings, infer_schema_length=None, glob=False)
    if suffix == ".jsonl":
        return _scan_jsonl(path, text)
    if suffix == ".parquet":
        return pl.scan_parquet(path, glob=False)
    raise DatasetError(f"{path}: a table is a .csv, .jsonl or .parquet file, got the suffix {path.suffix!r}")


def _csv_header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        names = next(csv.reader(lines), [])
    if not names:
        raise DatasetError(f"{path}: the file is empty; the first line must name the columns")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DatasetError(f"{path}: column {repeated!r} appears more than once in the header; rename or drop one")
    return names


def _scan_jsonl(path: Path, text: Sequence[str]) -> pl.LazyFrame:
    with path.open("rb") as stream:
        marked = stream.read(3) == codecs.BOM_UTF8
    if path.stat().st_size == 3 * marked:
        raise DatasetError(f"{path}: the file is empty; each line must be one JSON object")
    stream = path.open("rb")
    stream.seek(3 if marked else 0)
    inferred = pl.scan_ndjson(stream, infer_schema_length=None).collect_schema()
    overrides = {name: pl.String for name in text if name in inferred and not inferred[name].is_nested()}
    stream.seek(3 if marked else 0)
    return pl.scan_ndjson(stream, schema_overrides=overrides, infer_schema_length=None)


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
